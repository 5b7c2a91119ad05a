"""Statistical comparison of variants, paired by seeds."""

import math
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from typing_extensions import Self

from lightning_reg.studies.outcome import Outcome

__all__ = [
    "SIGNIFICANT",
    "Best",
    "Comparison",
    "Summary",
    "against_baseline",
    "best_of",
    "holm",
    "holm_corrected",
    "mean_and_error",
    "paired",
    "summaries",
]

SIGNIFICANT = 0.05
_MOST_EXACT_PAIRS = 12  # 4,096 ways to flip signs; with more pairs the t-test needs no second opinion


@dataclass(frozen=True)
class Summary:
    """Summary of a metric of one variant.

    Attributes:
        values: Finite values by seed.
        mean: Mean over seeds; NaN if there are none.
        error: Standard error of the mean; NaN with fewer than two seeds.
    """

    values: Mapping[int, float]
    mean: float
    error: float

    @classmethod
    def of(cls, values: Mapping[int, float]) -> Self:
        """Returns the summary of values by seed."""
        return cls(values, *mean_and_error(list(values.values())))


@dataclass(frozen=True)
class Comparison:
    """Comparison of a variant with another over the seeds that both have.

    Attributes:
        other: Name of the variant that it is compared with.
        pairs: Number of seeds that both have.
        difference: Mean of the differences; NaN without pairs.
        error: Standard error of the mean difference; NaN with fewer than two pairs.
        p: Two-sided p-value of a paired t-test, corrected for the number of comparisons; NaN with fewer than two pairs,
            or if all differences are equal and nonzero.
        exact_p: Two-sided p-value of the exact sign-flip permutation test, which assumes no distribution, corrected
            in the same way; NaN with fewer than two pairs or more than twelve.
    """

    other: str
    pairs: int
    difference: float
    error: float
    p: float
    exact_p: float = math.nan

    @property
    def is_significant(self) -> bool:
        """Whether the p-value of the t-test is below 0.05."""
        return self.p < SIGNIFICANT


@dataclass(frozen=True)
class Best:
    """The variant with the best mean.

    Attributes:
        variant: Name of the variant.
        runner_up: Name of the second best; None if there is no other.
        comparison: Comparison with the second best; None if there is no other.
        undecided: Comparisons with the variants than which it isn't significantly better.
    """

    variant: str
    runner_up: str | None
    comparison: Comparison | None
    undecided: tuple[Comparison, ...]

    @property
    def is_certain(self) -> bool:
        """Whether it is significantly better than every other variant."""
        return self.comparison is not None and not self.undecided


def summaries(outcome: Outcome, metric: str) -> dict[str, Summary]:
    """Returns the summary of a metric for every variant that has it, in the study's order."""
    found = {}
    for variant in outcome.study.variants:
        values = {
            result.seed: result.metrics[metric]
            for result in outcome.results
            if result.variant == variant and math.isfinite(result.metrics.get(metric, math.nan))
        }
        if values:
            found[variant] = Summary.of(values)
    return found


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error; NaN if a value isn't finite, as that of a run that diverged.

    >>> mean_and_error([1.0, 2.0, 3.0])
    (2.0, 0.577350269189625...)
    """
    if not all(map(math.isfinite, values)):  # the standard library raises on some of them
        return math.nan, math.nan
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def paired(first: Mapping[int, float], second: Mapping[int, float], other: str = "") -> Comparison:
    """Compares two variants by a paired t-test and, with few pairs, by an exact sign-flip permutation test.

    Args:
        first: Values of the variant, by seed.
        second: Values of the other variant, by seed.
        other: Name of the other variant.

    >>> comparison = paired({0: 2.0, 1: 3.0, 2: 4.5}, {0: 1.0, 1: 2.0, 2: 3.0})
    >>> round(comparison.difference, 3), round(comparison.p, 3), comparison.exact_p
    (1.167, 0.02, 0.25)
    """
    seeds = [seed for seed in first if seed in second]
    differences = [first[seed] - second[seed] for seed in seeds]
    mean, error = mean_and_error(differences)
    if len(seeds) < 2:
        return Comparison(other, len(seeds), mean, error, math.nan)
    exact = _sign_flip_p(differences) if len(seeds) <= _MOST_EXACT_PAIRS else math.nan
    if error == 0:  # all differences are equal, so the t statistic is undefined
        return Comparison(other, len(seeds), mean, error, 1.0 if mean == 0 else math.nan, exact)
    from scipy.stats import ttest_rel

    with warnings.catch_warnings():
        # For almost equal differences; reports only show a few digits.
        warnings.filterwarnings("ignore", message="Precision loss", category=RuntimeWarning)
        p = float(ttest_rel([first[seed] for seed in seeds], [second[seed] for seed in seeds]).pvalue)
    return Comparison(other, len(seeds), mean, error, p, exact)


def _sign_flip_p(differences: Sequence[float]) -> float:
    """Returns the share of all sign assignments whose mean is at least as far from zero."""
    import numpy as np
    from scipy.stats import permutation_test

    found = permutation_test(
        (np.asarray(differences),), np.mean, permutation_type="samples", n_resamples=2 ** len(differences)
    )
    return float(found.pvalue)


def holm(ps: Iterable[float]) -> list[float]:
    """Corrects p-values for multiple comparisons, controlling the family-wise error rate.

    Args:
        ps: P-values of all comparisons; NaN values are ignored.

    Reference:
        Sture Holm: A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6, 1979.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    given = list(ps)
    order = sorted((index for index, p in enumerate(given) if not math.isnan(p)), key=given.__getitem__)
    corrected, largest = list(given), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * given[index]))
        corrected[index] = largest
    return corrected


def holm_corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Returns comparisons with both of their p-values corrected for the number of comparisons, by :func:`holm`."""
    ps, exact = holm(compared.p for compared in comparisons), holm(compared.exact_p for compared in comparisons)
    return [replace(compared, p=p, exact_p=other) for compared, p, other in zip(comparisons, ps, exact, strict=True)]


def against_baseline(outcome: Outcome, metric: str) -> dict[str, Comparison]:
    """Compares every other variant with the baseline; empty if the baseline has no result."""
    found, baseline = summaries(outcome, metric), outcome.study.baseline
    if baseline not in found:
        return {}
    others = [variant for variant in found if variant != baseline]
    comparisons = [paired(found[other].values, found[baseline].values, baseline) for other in others]
    return dict(zip(others, holm_corrected(comparisons), strict=True))


def best_of(outcome: Outcome, metric: str) -> Best | None:
    """Returns the best variant and its comparison with the others; None without results."""
    found = summaries(outcome, metric)
    if not found:
        return None
    sign = -1 if outcome.study.prefers_less(metric) else 1
    ranked = sorted(found, key=lambda name: sign * found[name].mean, reverse=True)
    best, others = ranked[0], ranked[1:]
    if not others:
        return Best(best, None, None, ())
    comparisons = holm_corrected([paired(found[best].values, found[other].values, other) for other in others])
    # If seeds are missing, the pairs may contradict the means.
    undecided = [
        compared for compared in comparisons if not (compared.is_significant and sign * compared.difference > 0)
    ]
    return Best(best, others[0], comparisons[0], tuple(undecided))
