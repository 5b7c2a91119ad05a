"""Values against the textbook's formula and gradients against autograd of it, in float64."""

import pytest
import torch

from lightning_reg.functional.gradient import penalties
from lightning_reg.functional.gradient.orthogonality import add_orthogonal_gradient_, orthogonal_penalty
from lightning_reg.functional.gradient.penalties import (
    add_elastic_net_gradient_,
    add_group_lasso_gradient_,
    add_l2_sp_gradient_,
    elastic_net_penalty,
    group_lasso_penalty,
    l1_penalty,
    l2_penalty,
    l2_sp_penalty,
)

SHAPES = [(4, 1), (4, 7), (7, 4), (3, 2, 3, 3)]


def random_weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def excess(weight):
    flat = weight.flatten(1)
    gram = flat @ flat.T if len(flat) <= flat.shape[1] else flat.T @ flat
    return gram - torch.eye(len(gram), dtype=flat.dtype)


STARTS = random_weights(1)
# Of each: our value, the textbook's, and our gradient.
PENALTIES = {
    "l1": (
        lambda w: l1_penalty(w, 0.3),
        lambda w: 0.3 * sum(weight.abs().sum() for weight in w),
        lambda g, w, factor: add_elastic_net_gradient_(g, w, l1=0.3 * factor),
    ),
    "l2": (
        lambda w: l2_penalty(w, 0.3),
        lambda w: 0.3 / 2 * sum((weight**2).sum() for weight in w),
        lambda g, w, factor: add_elastic_net_gradient_(g, w, l2=0.3 * factor),
    ),
    "elastic net": (
        lambda w: elastic_net_penalty(w, 0.3, 0.2),
        lambda w: sum(0.3 * weight.abs().sum() + 0.2 / 2 * (weight**2).sum() for weight in w),
        lambda g, w, factor: add_elastic_net_gradient_(g, w, l1=0.3 * factor, l2=0.2 * factor),
    ),
    "group lasso": (
        lambda w: group_lasso_penalty(w, 0.3),
        lambda w: 0.3 * sum(unit.numel() ** 0.5 * unit.norm() for weight in w for unit in weight),
        lambda g, w, factor: add_group_lasso_gradient_(g, w, 0.3 * factor),
    ),
    "orthogonal": (
        lambda w: orthogonal_penalty(w, 0.3),
        lambda w: 0.3 * sum((excess(weight) ** 2).sum() for weight in w),
        lambda g, w, factor: add_orthogonal_gradient_(g, w, 0.3 * factor),
    ),
    "l2_sp": (
        lambda w: l2_sp_penalty(w, STARTS, 0.3),
        lambda w: 0.3 / 2 * sum(((weight - start) ** 2).sum() for weight, start in zip(w, STARTS, strict=True)),
        lambda g, w, factor: add_l2_sp_gradient_(g, w, STARTS, 0.3 * factor),
    ),
}
each_penalty = pytest.mark.parametrize("name", PENALTIES)


@each_penalty
def test_value_is_the_textbooks(name):
    ours, textbook, _ = PENALTIES[name]
    torch.testing.assert_close(ours(random_weights()), textbook(random_weights()), rtol=1e-13, atol=0)


@each_penalty
def test_value_is_differentiable(name):
    weights = [weight.requires_grad_() for weight in random_weights()]
    assert torch.autograd.gradcheck(lambda *tensors: PENALTIES[name][0](tensors), weights)


@each_penalty
@pytest.mark.parametrize("factor", [2.0, torch.tensor(2.0, dtype=torch.float64)], ids=["float", "tensor"])
@pytest.mark.parametrize("block", [5, 262_144], ids=["in blocks", "whole"])
def test_gradient_is_autograds_of_the_textbook_formula(name, factor, block, monkeypatch):
    monkeypatch.setattr(penalties, "BLOCK", block)
    weights = [weight.requires_grad_() for weight in random_weights()]
    expected = torch.autograd.grad(2 * PENALTIES[name][1](weights), weights)
    gradients = [torch.ones_like(weight) for weight in weights]
    PENALTIES[name][2](gradients, [weight.detach() for weight in weights], factor)
    for gradient, change in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, 1 + change, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("shape", "blocks"), [((900, 600), 1), ((30, 30), 0)])
def test_large_weights_are_worked_on_in_blocks(shape, blocks, monkeypatch):
    calls = []
    in_blocks = penalties._add_in_blocks_
    monkeypatch.setattr(penalties, "_add_in_blocks_", lambda *args: calls.append(in_blocks(*args)))
    add_elastic_net_gradient_([torch.zeros(shape)], [torch.ones(shape)], l1=1.0, l2=1.0)
    assert len(calls) == blocks


def test_what_is_not_one_piece_of_memory_gets_its_gradient_all_the_same():
    weight = torch.randn(900, 600, generator=torch.Generator().manual_seed(0)).T
    gradient = torch.zeros(600, 900)
    add_elastic_net_gradient_([gradient], [weight], l1=0.5, l2=0.25)
    torch.testing.assert_close(gradient, 0.5 * weight.sign() + 0.25 * weight, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["l1", "group lasso"])
def test_zero_weights_have_the_subgradient_zero(name):
    gradient = torch.zeros(2, 3)
    PENALTIES[name][2]([gradient], [torch.zeros(2, 3)], 1.0)
    assert torch.equal(gradient, torch.zeros(2, 3))


def test_wide_and_tall_matrices_have_the_same_orthogonal_gradient():
    """W Wᵀ − I and Wᵀ W − I differ in value by a constant only."""
    weight = random_weights()[1].requires_grad_()
    wide = weight @ weight.T - torch.eye(4, dtype=torch.float64)
    tall = weight.T @ weight - torch.eye(7, dtype=torch.float64)
    (one,) = torch.autograd.grad((wide**2).sum(), weight)
    (other,) = torch.autograd.grad((tall**2).sum(), weight)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [name for name in PENALTIES if name != "l2_sp"])  # its starts are in float64
def test_16_bit_weights_lose_no_more_than_their_own_rounding(name, dtype):
    weights = [weight.to(dtype) for weight in random_weights()]
    gradients = [torch.zeros_like(weight) for weight in weights]
    PENALTIES[name][2](gradients, weights, 1.0)
    exact = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    PENALTIES[name][2](exact, [weight.double() for weight in weights], 1.0)
    for gradient, expected in zip(gradients, exact, strict=True):
        # A sum or a product of two terms, each rounded: at most two units in the last place of the largest.
        bound = 2 * torch.finfo(dtype).eps * expected.abs().max()
        assert (gradient.double() - expected).abs().max() <= bound
