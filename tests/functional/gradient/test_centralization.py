"""Centralization against a loop over units."""

import torch

from lightning_reg.functional.gradient.centralization import centralize_


def tensors(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in [(5,), (4, 3), (3, 2, 3, 3)]]


def test_centralized_units_have_mean_zero_and_keep_their_differences():
    gradients = tensors()[1:]
    centralize_(gradients)
    for gradient, before in zip(gradients, tensors()[1:], strict=True):
        expected = torch.stack([unit - unit.mean() for unit in before])
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
