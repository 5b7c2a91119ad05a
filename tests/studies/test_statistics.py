"""Differences between variants, against scipy's tests and a permutation of signs."""

import itertools
import math
from dataclasses import replace

import pytest
from scipy.stats import ttest_rel

from lightning_reg.studies.outcome import Outcome, Result, Study
from lightning_reg.studies.statistics import against_baseline, best_of, holm, paired, summaries


def outcome(values, *, metric="test/accuracy", baseline=None, seeds=None):
    """Of values by variant, one a seed; None where a run is missing."""
    names = list(values)
    seeds = seeds or range(max(len(number) for number in values.values()))
    study = Study("s", "t", "q", names, baseline or names[0], seeds, metric)
    results = [
        Result(name, seed, {metric: value})
        for name, number in values.items()
        for seed, value in enumerate(number)
        if value is not None
    ]
    return Outcome(study, results[::-1])


A, B, C = [0.90, 0.91, 0.89, 0.93, 0.90], [0.92, 0.94, 0.90, 0.95, 0.93], [0.91, 0.90, 0.92, 0.90, 0.91]


def test_a_mean_and_its_error_are_over_seeds():
    found = summaries(outcome({"a": A, "b": [*B[:3], float("nan"), None]}), "test/accuracy")
    assert list(found) == ["a", "b"]
    assert found["a"].mean == pytest.approx(sum(A) / 5)
    assert found["a"].error == pytest.approx((sum((x - sum(A) / 5) ** 2 for x in A) / 4 / 5) ** 0.5)
    assert set(found["b"].values) == {0, 1, 2}


def test_pairs_are_those_of_scipy():
    compared = paired(dict(enumerate(B)), dict(enumerate(A)))
    assert compared.p == pytest.approx(ttest_rel(B, A).pvalue, rel=1e-12)
    assert compared.difference == pytest.approx(0.022)
    assert compared.pairs == 5
    missing = paired({0: B[0], 2: B[2], 4: B[4]}, dict(enumerate(A[:3])))
    assert missing.pairs == 2
    assert missing.p == pytest.approx(ttest_rel([B[0], B[2]], [A[0], A[2]]).pvalue, rel=1e-12)


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_the_exact_test_is_that_of_all_signs(seeds):
    differences = [0.03, -0.01, 0.02, 0.002, 0.04, 0.013, -0.03, 0.001][:seeds]
    means = [
        sum(sign * difference for sign, difference in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=seeds)
    ]
    p = sum(abs(mean) >= abs(sum(differences)) - 1e-12 for mean in means) / len(means)
    compared = paired(dict(enumerate(differences)), dict.fromkeys(range(seeds), 0.0))
    assert compared.exact_p == pytest.approx(p, abs=1e-12)


def test_the_exact_test_knows_its_limits():
    """With n pairs that all agree, no p is below 2 / 2^n; without pairs there is none, nor with many."""
    agreeing = {seed: 0.1 + 0.01 * seed for seed in range(5)}
    assert paired(agreeing, dict.fromkeys(range(5), 0.0)).exact_p == 2 / 2**5
    same = paired({0: 0.75, 1: 0.5}, {0: 0.5, 1: 0.25})  # nothing scatters, which stops the t-test alone
    assert (math.isnan(same.p), same.exact_p) == (True, 0.5)
    assert math.isnan(paired({0: 0.5}, {0: 0.4}).exact_p)
    many = {seed: seed % 3 + 0.1 for seed in range(13)}
    assert math.isnan(paired(many, dict.fromkeys(range(13), 0.0)).exact_p)


def test_seeds_that_pair_make_small_differences_certain():
    spread = [0.1, 0.5, 0.9, 0.3, 0.7]
    shifted = [x + 0.01 + 0.001 * i for i, x in enumerate(spread)]
    assert paired(dict(enumerate(shifted)), dict(enumerate(spread))).p < 1e-3


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [([0.5], [0.4], math.nan), ([], [], math.nan), ([0.5, 0.6], [0.5, 0.6], 1.0), ([0.75, 0.5], [0.5, 0.25], math.nan)],
)
def test_where_a_test_means_little(first, second, p):
    assert paired(dict(enumerate(first)), dict(enumerate(second))).p == pytest.approx(p, nan_ok=True)


def test_holm_by_its_definition():
    """The k-th smallest of m is significant at level s if p ≤ s / (m - k + 1), and all smaller ones are."""
    for ps in itertools.permutations([0.012, 0.03, 0.004, 0.2]):
        corrected = holm(ps)
        for level in (0.01, 0.016, 0.03, 0.04, 0.06, 0.3):
            rejected, ranked = set(), sorted(ps)
            for k, p in enumerate(ranked):
                if p > level / (len(ps) - k):
                    break
                rejected.add(p)
            assert {p for p, changed in zip(ps, corrected, strict=True) if changed <= level} == rejected
    assert holm([math.nan, 0.04]) == [pytest.approx(math.nan, nan_ok=True), 0.04]


def test_every_variant_is_compared_with_the_baseline_and_corrected():
    compared = against_baseline(outcome({"a": A, "b": B, "c": C}), "test/accuracy")
    assert list(compared) == ["b", "c"]
    assert compared["b"].exact_p == pytest.approx(2 * 2 / 2**5)
    raw = {"b": ttest_rel(B, A).pvalue, "c": ttest_rel(C, A).pvalue}
    assert compared["b"].p == pytest.approx(2 * raw["b"])
    assert compared["c"].p == pytest.approx(max(raw["c"], 2 * raw["b"]))
    assert against_baseline(outcome({"a": [None], "b": B}), "test/accuracy") == {}


def test_the_best_is_certain_only_where_it_differs_from_every_other():
    best = best_of(outcome({"a": A, "b": B, "c": C}), "test/accuracy")
    assert (best.variant, best.runner_up, best.is_certain) == ("b", "c", False)
    assert [comparison.other for comparison in best.undecided] == ["c"]
    certain = best_of(outcome({"a": A, "b": [x + 0.1 for x in B]}), "test/accuracy")
    assert certain.is_certain
    lowest = best_of(outcome({"a": A, "b": B}, metric="test/loss"), "test/loss")
    assert lowest.variant == "a"


def test_where_seeds_are_missing_the_pairs_decide():
    """The mean of a is higher by a seed that b lacks; wherever both ran, b is better."""
    best = best_of(outcome({"a": [0.5, 0.51, 0.5, 0.99], "b": [0.55, 0.565, 0.55, None]}), "test/accuracy")
    assert best.variant == "a"
    assert best.comparison.is_significant
    assert not best.is_certain


def test_a_study_may_say_what_is_better():
    measured = outcome({"a": [0.1, 0.2, 0.15], "b": [0.3, 0.41, 0.35]}, metric="reach")
    assert best_of(measured, "reach").variant == "b"
    asked = replace(measured, study=replace(measured.study, better="lower"))
    assert best_of(asked, "reach").variant == "a"
    assert best_of(asked, "reach").is_certain


def test_one_variant_or_none():
    alone = best_of(outcome({"a": A}), "test/accuracy")
    assert (alone.variant, alone.runner_up, alone.is_certain) == ("a", None, False)
    assert best_of(outcome({"a": [None]}), "test/accuracy") is None
