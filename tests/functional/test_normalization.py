import pytest
import torch

from lightning_reg.functional.normalization import channels_first_layer_norm, channels_first_rms_norm


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


def test_channels_last_stays_channels_last():
    inputs = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    assert channels_first_layer_norm(inputs, (8,)).is_contiguous(memory_format=torch.channels_last)
