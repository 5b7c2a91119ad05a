"""Clipping against torch's own functions and against loops over units and steps, in float64."""

import pytest
import torch
from torch import nn

from lightning_reg.functional.clip_thresholds import percentile_threshold, remember_, zscore_thresholds_
from lightning_reg.functional.gradients import (
    add_noise_,
    add_signs_,
    centralize_,
    clip_adaptively_,
    clip_by_value_,
    norms_of,
    scale_,
    shrinking_factor,
    total_norm,
)


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


def test_noise_has_the_deviation_asked_for():
    gradients = [torch.zeros(200, 500), torch.zeros(100_000)]
    add_noise_(gradients, 0.3, torch.Generator().manual_seed(0))
    for gradient in gradients:
        count = gradient.numel()
        assert abs(gradient.mean()) < 4 * 0.3 / count**0.5
        assert abs(gradient.std() - 0.3) < 4 * 0.3 / (2 * count) ** 0.5
    assert not torch.equal(gradients[0].flatten(), gradients[1])


def test_centralized_units_have_mean_zero_and_keep_their_differences():
    gradients = tensors()[1:]
    centralize_(gradients)
    for gradient, before in zip(gradients, tensors()[1:], strict=True):
        expected = torch.stack([unit - unit.mean() for unit in before])
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_signs_are_independent_and_have_the_variance_of_gaussian_noise(dtype):
    count = 40_000  # many are drawn four at a time
    gradients = [torch.zeros(200, 100, dtype=dtype), torch.zeros(count - 20_000, dtype=dtype)]
    add_signs_(gradients, 0.5, torch.Generator().manual_seed(1))
    values = torch.cat([gradient.flatten() for gradient in gradients])
    parts = torch.view_as_real(values).double().flatten() if dtype.is_complex else values.double()
    torch.testing.assert_close(values.abs().double(), torch.full((count,), 0.5, dtype=torch.float64), atol=1e-6, rtol=0)
    bound = 4 * parts.abs().max() / len(parts) ** 0.5  # four standard errors
    assert abs(parts.mean()) < bound
    for shift in range(1, 6):
        assert abs((parts[:-shift] * parts[shift:]).mean()) < bound * parts.abs().max()
