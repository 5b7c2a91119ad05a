"""Sums over activations are those that float64 gives, however they lie in memory."""

import pytest
import torch

from lightning_reg.functional.measures.activations import unit_sums

SHAPES = {
    "maps": ((3, 5, 4, 7), 1),
    "many maps": ((9, 64, 32, 32), 1),  # several blocks
    "sequence of features": ((4, 6, 5), -1),
    "sequence of channels": ((4, 6, 5), 1),
    "features": ((300, 1000), 1),  # several blocks
    "pooled": ((4, 5, 1, 1), 1),
    "a square": ((5, 5), -1),
    "one map": ((1, 5, 5), 1),
    "one vector": ((6,), 0),
}


def activations(shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu()
    values[values > 2] = 2.0
    values.view(-1)[::3] *= 1e-4
    return values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "dim"), SHAPES.values(), ids=SHAPES)
def test_sums_are_those_of_float64(shape, dim, dtype):
    values = activations(shape).to(dtype)
    found = unit_sums(values, dim, near_zero=1e-2, low=0.0, high=1.5)
    exact = values.double().movedim(dim, 0).reshape(shape[dim], -1)
    # A float32 sum of n terms by pairs is right to about log₂(n) roundings; n is at most 2¹⁶ here.
    rounding = {"rtol": 16 * torch.finfo(torch.float32).eps, "atol": 1e-9}
    torch.testing.assert_close(found.sums, exact.sum(1), **rounding)
    torch.testing.assert_close(found.squares, exact.square().sum(1), **rounding)
    assert torch.equal(found.zeros, (exact == 0).sum(1).double())
    assert found.near_zero == (exact.abs() < 1e-2).sum()
    assert found.saturated == (exact <= 0).sum() + (exact >= 1.5).sum()
    assert found.number == values.numel()


@pytest.mark.parametrize("change", ["channels_last", "transposed", "sliced"])
def test_any_layout_in_memory_gives_the_same(change):
    values = activations((4, 6, 8, 8))
    other = {
        "channels_last": lambda: values.to(memory_format=torch.channels_last),
        "transposed": lambda: values.transpose(2, 3).contiguous().transpose(2, 3),
        "sliced": lambda: torch.cat([values, values], dim=3)[..., :8],
    }[change]()
    for one, two in zip(unit_sums(values, 1), unit_sums(other, 1), strict=True):
        torch.testing.assert_close(one, two, rtol=2e-6, atol=0)


def test_compiled_is_eager():
    values = activations((4, 6, 8, 8))
    compiled = torch.compile(unit_sums, backend="aot_eager", fullgraph=True)
    for one, two in zip(compiled(values, 1, high=1.0), unit_sums(values, 1, high=1.0), strict=True):
        torch.testing.assert_close(one, two, rtol=2e-6, atol=0)


def test_what_is_not_finite_shows_in_the_sums():
    values = torch.tensor([[1.0, torch.nan], [1.0, 0.0]])
    found = unit_sums(values, 1)
    assert found.sums.isnan().tolist() == [False, True]
