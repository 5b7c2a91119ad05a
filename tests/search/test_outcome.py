"""What fresh seeds say of the cocktail."""

import pytest

from lightning_reg.search.outcome import SearchOutcome, confirmed
from lightning_reg.search.report.page import headline
from lightning_reg.search.trials.tried import Tried
from lightning_reg.studies.outcome import Result
from tests.search.helpers import make_space


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


def test_a_better_trial_whose_steps_take_too_long_is_called_so():
    plain, base = Tried(0, "plain", "plain", {}, 0.8, excess=-0.5), Tried(1, "base", "base", None, 0.9, excess=0.2)
    told = SearchOutcome("x", "X", make_space(), "val/accuracy", False, 1, 0, [plain, base], plain)
    assert "Beside it: base 90.00 % (too slow)." in " ".join(headline(told))
