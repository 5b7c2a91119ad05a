"""Averages against their definitions."""

import pytest
import torch

from lightning_reg.functional.weights.averaging import (
    decay_of_half_life,
    ema_update_,
    half_life_of_decay,
    lookahead_,
    mean_update_,
    warmed_up_decay,
)


def draws(count, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator, dtype=dtype) for shape in ((3, 4), (5,))] for _ in range(count)]


def test_moving_average_is_the_sum_with_falling_shares():
    first, *rest = draws(6)
    averages = [value.clone() for value in first]
    for values in rest:
        ema_update_(averages, values, 0.8)
    for index, average in enumerate(averages):
        expected = 0.8**5 * first[index] + sum(0.2 * 0.8 ** (4 - step) * w[index] for step, w in enumerate(rest))
        torch.testing.assert_close(average, expected)


def test_mean_is_the_mean():
    values = draws(7)
    means = [value.clone() for value in values[0]]
    for count, value in enumerate(values[1:], start=1):
        mean_update_(means, value, count)
    for index, mean in enumerate(means):
        torch.testing.assert_close(mean, torch.stack([value[index] for value in values]).mean(0))


def test_averages_in_32_bits_read_values_in_16():
    average, value = torch.ones(3), torch.full((3,), 2.0, dtype=torch.bfloat16)
    ema_update_([average], [value], 0.999)
    torch.testing.assert_close(average, torch.full((3,), 1.001), rtol=0, atol=1e-7)


def test_after_a_half_life_a_value_counts_half():
    decay = decay_of_half_life(5.0)
    average = [torch.ones((), dtype=torch.float64)]
    for _ in range(5):
        ema_update_(average, [torch.zeros((), dtype=torch.float64)], decay)
    assert average[0].item() == pytest.approx(0.5, rel=1e-12)
    assert half_life_of_decay(decay) == pytest.approx(5.0, rel=1e-12)


def test_warm_up_never_keeps_more_than_the_decay():
    decays = [warmed_up_decay(0.9, updates) for updates in range(1, 200)]
    assert decays[:2] == [2 / 11, 3 / 12]
    assert decays == sorted(decays)
    assert decays[-1] == 0.9


def test_lookahead_goes_a_part_of_the_way():
    slow, fast = draws(2)
    expected = [0.7 * back + 0.3 * ahead for back, ahead in zip(slow, fast, strict=True)]
    lookahead_(slow, fast, 0.3)
    torch.testing.assert_close(slow, expected)
    assert all(torch.equal(*values) for values in zip(slow, fast, strict=True))
