"""What is done to complex weights and gradients, beside real ones, against autograd of the formulas in complex128."""

import pytest
import torch
from torch import nn

from lightning_reg.functional.gradient import penalties
from lightning_reg.functional.gradient.centralization import centralize_
from lightning_reg.functional.gradient.clipping import clip_adaptively_, scale_, shrinking_factor
from lightning_reg.functional.gradient.gradient_noise import add_noise_
from lightning_reg.functional.gradient.orthogonality import add_orthogonal_gradient_, orthogonal_penalty
from lightning_reg.functional.gradient.penalties import (
    add_elastic_net_gradient_,
    add_group_lasso_gradient_,
    add_l2_sp_gradient_,
    elastic_net_penalty,
    group_lasso_penalty,
    l1_penalty,
    l2_sp_penalty,
)
from lightning_reg.functional.gradient.sharpness import climb_, climbing_factor, gradients_of_climb, scale_to_weights_
from lightning_reg.functional.norms import norms_of, total_norm
from lightning_reg.functional.weights.proximal import group_soft_threshold_, max_norm_, soft_threshold_, unit_norm_

KINDS = [torch.complex128, torch.float64, torch.complex128, torch.complex128]
SHAPES = [(4, 7), (3, 5), (7, 4), (3, 2, 3, 3)]


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape, dtype in zip(SHAPES, KINDS, strict=True)]


def parameters_with(gradients):
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return parameters


def squared(tensor):
    return tensor.real**2 + tensor.imag**2 if tensor.is_complex() else tensor**2


def excess(weight):
    flat = weight.flatten(1)
    gram = flat @ flat.conj().T if len(flat) <= flat.shape[1] else flat.conj().T @ flat
    return gram - torch.eye(len(gram), dtype=flat.dtype)


STARTS = tensors(1)
# Of each: our value, the textbook's, and our gradient.
PENALTIES = {
    "elastic net": (
        lambda w: elastic_net_penalty(w, 0.3, 0.2),
        lambda w: sum((0.3 * squared(weight).sqrt() + 0.2 / 2 * squared(weight)).sum() for weight in w),
        lambda g, w, factor: add_elastic_net_gradient_(g, w, l1=0.3 * factor, l2=0.2 * factor),
    ),
    "group lasso": (
        lambda w: group_lasso_penalty(w, 0.3),
        lambda w: 0.3 * sum(unit.numel() ** 0.5 * squared(unit).sum().sqrt() for weight in w for unit in weight),
        lambda g, w, factor: add_group_lasso_gradient_(g, w, 0.3 * factor),
    ),
    "orthogonal": (
        lambda w: orthogonal_penalty(w, 0.3),
        lambda w: 0.3 * sum(squared(excess(weight)).sum() for weight in w),
        lambda g, w, factor: add_orthogonal_gradient_(g, w, 0.3 * factor),
    ),
    "l2_sp": (
        lambda w: l2_sp_penalty(w, STARTS, 0.3),
        lambda w: 0.3 / 2 * sum(squared(weight - start).sum() for weight, start in zip(w, STARTS, strict=True)),
        lambda g, w, factor: add_l2_sp_gradient_(g, w, STARTS, 0.3 * factor),
    ),
}


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("factor", [2.0, torch.tensor(2.0, dtype=torch.float64)], ids=["float", "tensor"])
@pytest.mark.parametrize("block", [5, 262_144], ids=["in blocks", "whole"])
def test_penalties_and_their_gradients_are_those_of_the_formulas(name, factor, block, monkeypatch):
    monkeypatch.setattr(penalties, "BLOCK", block)
    ours, textbook, add_gradient_ = PENALTIES[name]
    weights = [weight.requires_grad_() for weight in tensors()]
    value = textbook(weights)
    torch.testing.assert_close(ours(weights), value, rtol=1e-13, atol=0)
    expected = torch.autograd.grad(2 * value, weights)
    for found, change in zip(torch.autograd.grad(2 * ours(weights), weights), expected, strict=True):
        torch.testing.assert_close(found, change, rtol=1e-11, atol=1e-12)
    before = tensors(2)
    gradients = [gradient.clone() for gradient in before]
    add_gradient_(gradients, [weight.detach() for weight in weights], factor)
    for gradient, start, change in zip(gradients, before, expected, strict=True):
        torch.testing.assert_close(gradient, start + change, rtol=1e-12, atol=1e-12)


def test_a_complex_weight_of_zero_has_no_gradient_of_l1():
    weight = torch.tensor([0, 3 - 4j], dtype=torch.complex128)
    gradient = torch.zeros_like(weight)
    add_elastic_net_gradient_([gradient], [weight], l1=1.0)
    torch.testing.assert_close(gradient, torch.tensor([0, 0.6 - 0.8j], dtype=torch.complex128))


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize(
    ("operator", "penalty"), [(soft_threshold_, l1_penalty), (group_soft_threshold_, group_lasso_penalty)]
)
def test_proximal_operators_minimize_distance_plus_penalty(operator, penalty, tensor):
    start = tensors()[:2]
    for weight in start:
        weight[0] *= 0.2  # short enough to become zero as a group
    point = [weight.clone() for weight in start]
    operator(point, torch.tensor(0.5, dtype=torch.float64) if tensor else 0.5)

    def objective(found):
        return sum(squared(a - b).sum() / 2 for a, b in zip(found, start, strict=True)) + penalty(found, 0.5)

    for weight in point:
        assert 0 < (weight == 0).sum() < weight.numel()
    for seed in range(200):  # it is convex, so no better point nearby means none anywhere
        steps = tensors(seed)[:2]
        assert objective(point) <= objective([a + 1e-3 * b for a, b in zip(point, steps, strict=True)])


def test_units_are_shortened_to_their_length_and_keep_their_angles():
    for operator in (unit_norm_, lambda units: max_norm_(units, 1.0)):
        start = [5 * tensor for tensor in tensors()]
        units = [unit.clone() for unit in start]
        operator(units)
        for unit, before in zip(units, start, strict=True):
            lengths = squared(before).flatten(1).sum(1).sqrt().view(-1, *[1] * (before.ndim - 1))
            torch.testing.assert_close(unit, before / lengths)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, torch.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_norm_clipping_is_torchs(norm_type, max_norm):
    ours, theirs = tensors(), parameters_with(tensors())
    norm = nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    norms = norms_of(ours, norm_type)
    assert norms.dtype == torch.float64
    total = total_norm(norms, norm_type)
    scale_(ours, shrinking_factor(total, max_norm))
    torch.testing.assert_close(total, norm, rtol=1e-14, atol=0)
    for gradient, parameter in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-14, atol=0)


def test_norms_of_single_precision_are_real_and_of_single_precision():
    norms = norms_of([torch.tensor([3 + 4j]), torch.tensor([2.0], dtype=torch.bfloat16)])
    assert norms.dtype == torch.float32
    assert norms.tolist() == [5, 2]


def test_adaptive_clipping_goes_by_absolute_values():
    gradients, weights, expected = tensors(), tensors(1), tensors()
    clip_adaptively_(gradients, weights, 0.5)
    for gradient, weight in zip(expected, weights, strict=True):
        for slopes, unit in zip(gradient, weight, strict=True):
            slopes.mul_(min(1, 0.5 * (squared(unit).sum() / squared(slopes).sum()).sqrt().item()))
    for pair in zip(gradients, expected, strict=True):
        torch.testing.assert_close(*pair)


def test_centralized_gradients_have_no_mean_in_either_part():
    for gradient, before in zip(gradients := tensors(), tensors(), strict=True):
        centralize_([gradient])
        mean = before.flatten(1).mean(1)
        torch.testing.assert_close(gradient + mean.view(-1, *[1] * (before.ndim - 1)), before)
    assert gradients[0].flatten(1).sum(1).abs().max() < 1e-12


def test_noise_of_complex_gradients_has_the_variance_in_both_parts_together():
    gradient = torch.zeros(100_000, dtype=torch.complex128)
    add_noise_([gradient], 0.5, torch.Generator().manual_seed(0))
    for part in (gradient.real, gradient.imag):
        assert part.var().item() == pytest.approx(0.25 / 2, rel=0.02)


@pytest.mark.parametrize("eta", [None, 0.1])
def test_sharpness_climbs_along_the_gradient_by_a_step_of_rho(eta):
    weights, slopes = tensors(), tensors(1)
    gradients, before = [slope.clone() for slope in slopes], tensors()
    kept = [torch.zeros_like(tensor) for tensor in weights]
    scales = [torch.ones(()) if eta is None else squared(weight).sqrt() + eta for weight in before]
    if eta is not None:
        scale_to_weights_(gradients, weights, eta)
    length = sum(squared(scale * slope).sum() for scale, slope in zip(scales, slopes, strict=True)).sqrt()
    factor = climbing_factor(total_norm(norms_of(gradients)), 0.5)
    climb_(weights, gradients, kept, factor, eta)
    assert all(torch.equal(*pair) for pair in zip(kept, before, strict=True))
    for weight, start, scale, slope in zip(weights, before, scales, slopes, strict=True):
        torch.testing.assert_close(weight, start + 0.5 * scale**2 * slope / length)
    for found, slope in zip(gradients_of_climb(kept, weights, factor, eta), slopes, strict=True):
        torch.testing.assert_close(found, slope)
