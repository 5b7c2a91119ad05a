"""Clipping against torch's own functions and against loops over units and steps, in float64."""

import pytest
import torch
from torch import nn

from lightning_reg.functional.gradient.clip_thresholds import percentile_threshold, remember_, zscore_thresholds_
from lightning_reg.functional.gradient.clipping import clip_adaptively_, clip_by_value_, scale_, shrinking_factor
from lightning_reg.functional.norms import norms_of, total_norm


def tensors(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in [(5,), (4, 3), (3, 2, 3, 3)]]


def parameters_with(gradients):
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return parameters


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, torch.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_norm_clipping_equals_torchs_to_the_bit(norm_type, max_norm):
    ours, theirs = tensors(), parameters_with(tensors())
    norm = nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    total = total_norm(norms_of(ours, norm_type), norm_type)
    scale_(ours, shrinking_factor(total, max_norm))
    assert torch.equal(total, norm)
    for gradient, parameter in zip(ours, theirs, strict=True):
        assert torch.equal(gradient, parameter.grad)


@pytest.mark.parametrize("bound", [0.5, torch.tensor(0.5, dtype=torch.float64)], ids=["float", "tensor"])
def test_value_clipping_equals_torchs_to_the_bit(bound):
    ours, theirs = tensors(), parameters_with(tensors())
    nn.utils.clip_grad_value_(theirs, 0.5)
    clip_by_value_(ours, bound)
    for gradient, parameter in zip(ours, theirs, strict=True):
        assert torch.equal(gradient, parameter.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_in_16_bits_neither_overflow_nor_lose_digits(dtype):
    gradient = torch.full((1000,), 100.0, dtype=dtype)
    torch.testing.assert_close(norms_of([gradient]), torch.tensor([100.0 * 1000**0.5]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1.0, torch.tensor(64.0, dtype=torch.float64)])
def test_adaptive_clipping_equals_a_loop_over_units(scale):
    gradients, weights = [tensor * scale for tensor in tensors()], [tensor.clone() for tensor in tensors(1)]
    weights[1][0] = 0  # counts as long as eps
    expected = []
    for gradient, weight in zip(tensors(), weights, strict=True):
        units = zip(gradient, weight, strict=True) if gradient.ndim > 1 else [(gradient, weight)]
        shortened = [g * min(1, 0.3 * max(w.norm(), 1e-3) / g.norm()) for g, w in units]
        expected.append(torch.stack(shortened) if gradient.ndim > 1 else shortened[0])
    assert clip_adaptively_(gradients, weights, 0.3, scale=scale)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient / scale, other, rtol=1e-12, atol=0)


def test_adaptive_clipping_leaves_short_gradients_to_the_bit():
    gradients = tensors()
    assert not clip_adaptively_(gradients, tensors(1), 1e6)
    assert all(torch.equal(one, other) for one, other in zip(gradients, tensors(), strict=True))


def test_percentile_is_that_of_the_last_finite_norms():
    history, count = torch.full((4,), torch.nan), torch.tensor(0)
    assert percentile_threshold(history, 10) == torch.inf
    norms = [5.0, torch.inf, 1.0, torch.nan, 2.0, 4.0, 3.0, 9.0]
    seen = []
    for norm in norms:
        remember_(history, count, torch.tensor(norm))
        seen += [norm] if torch.isfinite(torch.tensor(norm)) else []
        expected = torch.tensor(seen[-4:]).quantile(0.3)
        torch.testing.assert_close(percentile_threshold(history, 30), expected)
    assert count == 6


@pytest.mark.parametrize("norms", [[1.0, 1.0, 1.0, 5.0], [1.0, 2.0, 3.0, 50.0]])
def test_an_infinite_zscore_clips_nothing(norms):
    moments = torch.zeros(3)
    for norm in map(torch.tensor, norms):
        trigger, target = zscore_thresholds_(moments, norm, z_threshold=torch.inf, alpha=0.9, warmup_steps=2)
        assert trigger == torch.inf
        assert target == norm


def test_zscore_equals_a_loop_over_steps():
    norms = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    norms[20], norms[30], norms[33] = 30.0, torch.inf, 10.0
    moments = torch.zeros(3, dtype=torch.float64)
    seen, mean, variance = [], None, None
    for norm in norms:
        trigger, target = zscore_thresholds_(moments, norm, z_threshold=2.5, alpha=0.9, warmup_steps=10)
        if not norm.isfinite():
            continue
        if len(seen) < 10:
            assert trigger == torch.inf
            assert target == norm
            seen.append(norm)
            mean, variance = torch.stack(seen).mean(), torch.stack(seen).var(correction=0)
            continue
        z = (norm - mean) / variance.sqrt()
        expected = mean + 2.5**2 / z * variance.sqrt() if z > 2.5 else norm
        torch.testing.assert_close(trigger, mean + 2.5 * variance.sqrt())
        torch.testing.assert_close(target, expected)
        mean = 0.9 * mean + 0.1 * expected
        variance = 0.9 * variance + 0.1 * (expected - mean) ** 2
    torch.testing.assert_close(moments[1:], torch.stack([mean, variance]))
