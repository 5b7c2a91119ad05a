"""Climbing, beside the formulas number by number: in portions, in runs of small tensors, in other memory formats."""

import pytest
import torch

from lightning_reg.functional.blocks import BLOCK
from lightning_reg.functional.gradient.sharpness import climb_, climbing_factor, gradients_of_climb, scale_to_weights_


def tensors(*shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


SHAPES = ((3, 4), (5,), (BLOCK + 7,), (2, 3, 4, 4), ())


@pytest.mark.parametrize("eta", [None, 0.1])
def test_weights_climb_and_are_kept_as_they_were(eta):
    weights, gradients = tensors(*SHAPES, seed=0), tensors(*SHAPES, seed=1)
    weights[3] = weights[3].to(memory_format=torch.channels_last)
    before, slopes = ([tensor.clone() for tensor in some] for some in (weights, gradients))
    kept = [torch.full_like(tensor, float("nan")) for tensor in weights]
    scales = [torch.ones_like(weight) if eta is None else weight.abs() + eta for weight in before]
    if eta is not None:
        scale_to_weights_(gradients, weights, eta)
    length = torch.cat([(scale * slope).flatten() for scale, slope in zip(scales, slopes, strict=True)]).norm()
    factor = climbing_factor(length, 0.5)
    climb_(weights, gradients, kept, factor, eta)
    assert all(torch.equal(*pair) for pair in zip(kept, before, strict=True))
    for weight, start, scale, slope in zip(weights, before, scales, slopes, strict=True):
        torch.testing.assert_close(weight, start + 0.5 * scale**2 * slope / length, rtol=1e-12, atol=1e-14)
    if eta is None:
        way = torch.cat([(a - b).flatten() for a, b in zip(weights, before, strict=True)]).norm()
        assert way.item() == pytest.approx(0.5)
    again = gradients_of_climb(kept, weights, factor, eta)
    for found, slope in zip(again, slopes, strict=True):
        torch.testing.assert_close(found, slope, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("length", [0.0, float("inf"), float("nan")])
def test_where_there_is_no_way_up_nothing_moves(length):
    weights = tensors((3,), seed=0)
    before = weights[0].clone()
    climb_(
        weights,
        [torch.zeros(3, dtype=torch.float64)],
        [torch.empty_like(before)],
        climbing_factor(torch.tensor(length), 1.0),
    )
    assert torch.equal(weights[0], before)
