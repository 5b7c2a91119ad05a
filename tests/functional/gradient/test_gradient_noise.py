"""Noise on gradients has the moments that are asked for."""

import pytest
import torch

from lightning_reg.functional.gradient.gradient_noise import add_noise_, add_signs_


def test_noise_has_the_deviation_asked_for():
    gradients = [torch.zeros(200, 500), torch.zeros(100_000)]
    add_noise_(gradients, 0.3, torch.Generator().manual_seed(0))
    for gradient in gradients:
        count = gradient.numel()
        assert abs(gradient.mean()) < 4 * 0.3 / count**0.5
        assert abs(gradient.std() - 0.3) < 4 * 0.3 / (2 * count) ** 0.5
    assert not torch.equal(gradients[0].flatten(), gradients[1])


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
