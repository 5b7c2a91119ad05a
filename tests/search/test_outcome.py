"""What fresh seeds say of the cocktail."""

import pytest

from lightning_reg.search.outcome import confirmed
from lightning_reg.studies.outcome import Result


def test_both_p_values_are_corrected_for_the_number_of_comparisons():
    """Where all six differences have one sign, two of the 2⁶ ways to choose the signs are as far from zero."""
    means = {"cocktail": 0.9, "without l1": 0.8, "plain": 0.7}
    results = [
        Result(variant, seed, {"test/accuracy": mean + 0.001 * (seed * order) ** 2})
        for order, (variant, mean) in enumerate(means.items())
        for seed in range(6)
    ]
    found = confirmed(results, "test/accuracy", range(6), {"l1": {}, "l2": {}}, prefers_less=False)
    assert {name: comparison.exact_p for name, comparison in found.comparisons.items()} == {
        "without l1": pytest.approx(2 * 2 / 2**6),
        "plain": pytest.approx(2 * 2 / 2**6),
    }
