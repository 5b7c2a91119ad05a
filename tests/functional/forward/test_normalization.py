import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from lightning_reg.functional.forward.normalization import (
    channels_first_layer_norm,
    channels_first_rms_norm,
    filter_response_norm,
    ghost_batches,
    standardized_weight,
)
from lightning_reg.settings import SettingError


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 4), (3, 5, 4, 6), (2, 5, 3, 2, 4)])
def test_layer_norm_is_the_formula(shape):
    inputs = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight, bias = torch.linspace(0.5, 2, 5, dtype=torch.float64), torch.linspace(-1, 1, 5, dtype=torch.float64)
    mean = inputs.mean(1, keepdim=True)
    variance = inputs.var(1, correction=0, keepdim=True)
    view = (1, 5, *[1] * (len(shape) - 2))
    expected = weight.view(view) * (inputs - mean) / (variance + 1e-5).sqrt() + bias.view(view)
    torch.testing.assert_close(channels_first_layer_norm(inputs, (5,), weight, bias), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 4), (3, 5, 4, 6)])
def test_rms_norm_is_the_formula(shape):
    inputs = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    view = (1, 5, *[1] * (len(shape) - 2))
    expected = weight.view(view) * inputs / (inputs.square().mean(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(channels_first_rms_norm(inputs, (5,), weight, 1e-6), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", [channels_first_layer_norm, channels_first_rms_norm])
def test_channels_first_norms_refuse_other_shapes_than_theirs(norm):
    with pytest.raises(SettingError, match=r"inputs must have the shape \(N, 8, \.\.\.\), but have \(8,\)"):
        norm(torch.ones(8), (8,))
    with pytest.raises(SettingError, match=r"inputs must have the shape \(N, 8, \.\.\.\), but have \(2, 4, 8\)"):
        norm(torch.ones(2, 4, 8), (8,))


@pytest.mark.parametrize("norm", [channels_first_layer_norm, channels_first_rms_norm])
def test_a_transposed_sequence_stays_transposed(norm):
    """(N, L, C) seen as (N, C, L) is normalized without a copy."""
    inputs = torch.randn(2, 6, 8).transpose(1, 2)
    assert norm(inputs, (8,)).stride() == inputs.stride()


def random_case(shape, num_parameters):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(shape, dtype=torch.float64, generator=generator)
    return inputs, *torch.randn(num_parameters, shape[1], dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("shape", [(3, 5, 4), (3, 5, 4, 6), (2, 5, 3, 2, 4)])
def test_filter_response_norm_is_the_formula(shape):
    inputs, weight, bias, threshold = random_case(shape, 3)
    expected = torch.empty_like(inputs)
    for sample in range(shape[0]):
        for channel in range(shape[1]):
            values = inputs[sample, channel]
            root = math.sqrt(values.square().sum().item() / values.numel() + 1e-3)
            expected[sample, channel] = weight[channel] * values / root + bias[channel]
            expected[sample, channel].clamp_(min=threshold[channel].item())
    outputs = filter_response_norm(inputs, weight, bias, threshold, 1e-3)
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)


def test_filter_response_norm_without_parameters_has_mean_square_one():
    inputs, *_ = random_case((3, 5, 4, 6), 0)
    mean_square = filter_response_norm(inputs, eps=1e-12).square().mean((2, 3))
    # ε is less than 1e-10 of any mean square here.
    torch.testing.assert_close(mean_square, torch.ones(3, 5, dtype=torch.float64), rtol=0, atol=1e-10)


def test_gradients_of_filter_response_norm_are_right():
    inputs, *parameters = random_case((2, 3, 4), 3)
    arguments = [inputs, *parameters, torch.tensor(0.1, dtype=torch.float64)]
    assert gradcheck(filter_response_norm, [argument.requires_grad_() for argument in arguments])


def test_filter_response_norm_of_large_float16_is_finite():
    """Squares of numbers beyond 256 aren't."""
    inputs = torch.tensor([[[1000.0, -1000.0, 3000.0]]], dtype=torch.float16)
    expected = filter_response_norm(inputs.double())
    # Computed in float32 and rounded once to 10 bits.
    torch.testing.assert_close(filter_response_norm(inputs).double(), expected, rtol=2**-11, atol=0)


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 3, 4)])
def test_filter_response_norm_refuses_other_shapes(shape):
    with pytest.raises(SettingError, match=r"inputs must have the shape \(N, 4, L, \.\.\.\), but have \("):
        filter_response_norm(torch.ones(shape), torch.ones(4))


@pytest.mark.parametrize("positions", [(), (1,), (2,), (2, 3)])
@pytest.mark.parametrize("ghost_batch_size", [1, 2, 3, 4, 7, 32])
@pytest.mark.parametrize("samples", [2, 3, 5, 7, 8, 31, 33])
def test_ghost_batches_are_even_and_small_and_never_of_one_value(samples, ghost_batch_size, positions):
    inputs = torch.randn(samples, 3, *positions)
    ghosts = ghost_batches(inputs, ghost_batch_size)
    sizes = [len(ghost) for ghost in ghosts]
    assert torch.equal(torch.cat(ghosts), inputs)
    assert max(sizes) - min(sizes) <= 1
    assert all(ghost[:, 0].numel() > 1 for ghost in ghosts)
    # Only where one value per channel would be left may a ghost batch be larger: 2 or 3 samples instead of 1.
    allowed = ghost_batch_size if math.prod(positions) > 1 else max(ghost_batch_size, 3)
    assert max(sizes) <= allowed
    # As few as that allows.
    assert len(sizes) <= math.ceil(samples / ghost_batch_size)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4,), r"inputs must have the shape \(N, C, \.\.\.\), but have \(4,\)"),
        ((1, 4), r"more than one value per channel in training, but have the shape \(1, 4\)"),
        ((1, 4, 1, 1), r"more than one value per channel in training, but have the shape \(1, 4, 1, 1\)"),
        ((0, 4, 3), r"more than one value per channel in training, but have the shape \(0, 4, 3\)"),
    ],
)
def test_batches_without_statistics_are_refused(shape, message):
    with pytest.raises(SettingError, match=message):
        ghost_batches(torch.ones(shape), 2)


def random_weight(*shape):
    return 3 + 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(5, 7), (5, 4, 3), (5, 4, 3, 3), (5, 1, 3, 3), (5, 4, 2, 3, 2)])
def test_standardized_weight_is_batch_norm_over_output_units(shape):
    weight = random_weight(*shape)
    expected = F.batch_norm(weight.view(1, shape[0], -1), None, None, training=True, eps=1e-3).view(shape)
    torch.testing.assert_close(standardized_weight(weight, eps=1e-3), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_output_units_of_transposed_convolutions_are_standardized_in_their_group(groups):
    weight = random_weight(6, 4, 3, 3)
    of_groups = [standardized_weight(part.transpose(0, 1)).transpose(0, 1) for part in weight.chunk(groups)]
    actual = standardized_weight(weight, dim=1, groups=groups)
    torch.testing.assert_close(actual, torch.cat(of_groups), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [0, 1])
def test_standardized_weight_keeps_memory_format_and_dtype(dim):
    weight = torch.randn(6, 4, 3, 3, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    standardized = standardized_weight(weight, dim=dim)
    assert standardized.dtype == torch.bfloat16
    assert standardized.stride() == weight.stride()


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((4,), {}, r"two elements per output unit, but has the shape \(4,\) with output units in dimension 0"),
        ((4,), {"dim": 1}, r"two elements per output unit, but has the shape \(4,\) with output units in dimension 1"),
        ((4, 1, 1, 1), {}, r"two elements per output unit, but has the shape \(4, 1, 1, 1\)"),
        ((4, 2, 1, 1), {"dim": 1, "groups": 4}, "two elements per output unit"),
        ((4, 2, 3, 3), {"dim": 1, "groups": 3}, "groups must divide the 4 inputs of the weight, but is 3"),
    ],
)
def test_weights_that_cant_be_standardized_are_refused(shape, settings, message):
    with pytest.raises(SettingError, match=message):
        standardized_weight(torch.ones(shape), **settings)
