"""Proximal operators against their definition: the minimum of ‖x − w‖²/2 plus the penalty."""

import pytest
import torch

from lightning_reg.functional.gradient.penalties import group_lasso_penalty, l1_penalty
from lightning_reg.functional.weights.proximal import (
    group_soft_threshold_,
    max_norm_,
    non_negative_,
    soft_threshold_,
    unit_norm_,
)


def weights(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize(
    ("operator", "penalty"), [(soft_threshold_, l1_penalty), (group_soft_threshold_, group_lasso_penalty)]
)
def test_proximal_operator_minimizes_distance_plus_penalty(operator, penalty, tensor):
    start = weights(6, 5)
    start[0] *= 0.3  # short enough to become zero as a group
    point = start.clone()
    operator([point], torch.tensor(0.4, dtype=torch.float64) if tensor else 0.4)

    def objective(x):
        return (x - start).square().sum() / 2 + penalty([x], 0.4)

    assert 0 < (point == 0).sum() < point.numel()
    for seed in range(200):  # it is convex, so no better point nearby means none anywhere
        step = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert objective(point) <= objective(point + 1e-3 * step)


def test_many_small_weights_shrink_as_each_alone_does():
    start = [weights(size) for size in (3, 1, 300_000, 40)]
    together = [weight.clone() for weight in start]
    soft_threshold_(together, 0.4)
    for one, other in zip(start, together, strict=True):
        assert torch.equal(torch.where(one.abs() > 0.4, one - 0.4 * one.sign(), 0.0), other)


def test_group_that_is_zero_stays_zero():
    group = torch.zeros(2, 3)
    group_soft_threshold_([group], 0.1)
    assert torch.equal(group, torch.zeros(2, 3))


def test_threshold_of_zero_is_the_identity():
    for operator in (soft_threshold_, group_soft_threshold_):
        point = weights(6, 5)
        operator([point], 0.0)
        assert torch.equal(point, weights(6, 5))


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 2, 2)])
def test_max_norm_equals_torchs_renorm(shape):
    unit = weights(*shape)
    expected = unit.renorm(2, 0, 1.5)
    max_norm_([unit], 1.5)
    assert (unit != weights(*shape)).any()
    # torch's divides by the norm plus 1e-7.
    torch.testing.assert_close(unit, expected, rtol=1e-6, atol=0)


def test_short_units_are_left_to_the_bit():
    unit = weights(6, 5)
    max_norm_([unit], 100.0)
    assert torch.equal(unit, weights(6, 5))


def test_unit_norm_and_non_negative():
    unit = weights(6, 5)
    unit[0] = 0
    unit_norm_([unit])
    torch.testing.assert_close(unit.norm(dim=1), torch.tensor([0.0] + [1.0] * 5, dtype=torch.float64))
    non_negative_([unit])
    assert unit.min() == 0
