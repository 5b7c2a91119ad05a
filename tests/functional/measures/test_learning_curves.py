"""Curves whose meaning is known, because they were made so."""

import math

import pytest

from lightning_reg.functional.measures.learning_curves import (
    generalization_gap,
    is_underfitting,
    is_unfinished,
    lowest,
    memorization_start,
    overfitting_start,
)

FALLING = [1.0, 0.8, 0.6, 0.4, 0.2, 0.1]


def test_gap_is_how_much_worse_validation_is():
    assert generalization_gap(0.1, 0.3) == pytest.approx(0.2)
    assert generalization_gap(0.9, 0.7, lower_is_better=False) == pytest.approx(0.2)
    assert generalization_gap(0.3, 0.1) == pytest.approx(-0.2)


@pytest.mark.parametrize("best", [1, 2])
def test_overfitting_begins_after_the_lowest_validation_loss(best):
    validation = [1.0 + 0.1 * abs(index - best) for index in range(6)]
    assert overfitting_start(FALLING, validation, patience=3) == best + 1


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        pytest.param(FALLING, FALLING, id="both fall"),
        pytest.param(FALLING[::-1], [1.0, 0.9, 1.2, 1.4, 1.5, 1.6], id="training rises, too: it diverges"),
        pytest.param(FALLING, [1.0, 0.9, 0.91, 0.92, 0.93, 0.93], id="within the tolerance"),
        pytest.param(FALLING, [1.0, 0.9, 0.8, 0.7, 1.2, 1.3], id="too few measurements follow"),
        pytest.param(FALLING, [math.nan] * 6, id="nothing is finite"),
        pytest.param([], [], id="nothing was measured"),
    ],
)
def test_what_is_no_overfitting(train, validation):
    assert overfitting_start(train, validation, patience=3) is None


def test_tolerance_is_a_share_of_the_size_of_the_loss():
    """Likelihoods of densities are negative."""
    assert overfitting_start(FALLING, [-9.0, -10.0, -9.9, -9.9, -9.9, -9.9], tolerance=0.05) is None
    assert overfitting_start(FALLING, [-9.0, -10.0, -9.0, -9.0, -9.0, -9.0], tolerance=0.05) == 2


def test_memorization_has_to_last():
    assert memorization_start([1.0, 0.9, 1.0, 1.0], [0.8, 0.8, 0.8, 0.8]) == 2
    assert memorization_start([1.0, 1.0], [0.8, 0.97]) is None
    assert memorization_start([0.98], [0.5]) is None


def test_underfitting_is_doing_badly_on_both():
    flat = [2.3, 2.3, 2.25]
    assert is_underfitting(flat, flat)
    assert not is_underfitting(FALLING, FALLING)
    assert not is_underfitting(flat, [2.3, 2.5, 2.6])  # a gap
    assert is_underfitting(FALLING, FALLING, [0.2, 0.3, 0.4, 0.4, 0.5, 0.5])
    assert not is_underfitting(flat, flat, [0.5, 0.6, 0.9])
    assert not is_underfitting([2.3], [2.3])


def test_unfinished_is_lowest_at_the_end():
    assert is_unfinished(FALLING)
    assert not is_unfinished([*FALLING, 0.3])
    assert not is_unfinished([0.9, 0.8, 0.7])  # too short to say


def test_lowest_leaves_out_what_is_not_finite():
    assert lowest([math.inf, 0.4, math.nan, 0.3, 0.3]) == 3
    assert lowest([math.nan]) is None
