"""Which differences between variants are more than chance: seeds pair the runs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lightning_reg.attach.metric_names import lower_is_better
from lightning_reg.studies.outcome import Outcome

__all__ = [
    "SIGNIFICANT",
    "Best",
    "Comparison",
    "Summary",
    "against_baseline",
    "best_of",
    "holm",
    "mean_and_error",
    "paired",
    "summaries",
]

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Summary:
    """A metric of one variant.

    Attributes:
        values: By seed; those that aren't finite are left out.
        mean: Over seeds; NaN where there is none.
        error: Standard error of the mean; NaN with fewer than two seeds.
    """

    values: Mapping[int, float]
    mean: float
    error: float

    @classmethod
    def of(cls, values: Mapping[int, float]) -> "Summary":
        """Returns the summary of values by seed."""
        return cls(values, *mean_and_error(list(values.values())))


@dataclass(frozen=True)
class Comparison:
    """How a variant differs from another over the seeds that both have.

    Attributes:
        other: The variant that it is compared with.
        pairs: How many seeds both have.
        difference: Mean of the differences; NaN without pairs.
        error: Standard error of the mean; NaN with fewer than two pairs.
        p: Two-sided, of a paired t-test, corrected for the number of comparisons; NaN with fewer than two pairs.
    """

    other: str
    pairs: int
    difference: float
    error: float
    p: float

    @property
    def is_significant(self) -> bool:
        """Whether chance alone would seldom make such a difference."""
        return self.p < SIGNIFICANT


@dataclass(frozen=True)
class Best:
    """The variant with the best mean.

    Attributes:
        variant: Its name.
        runner_up: The next best; None where there is no other.
        comparison: With the runner-up.
        undecided: Variants from which it doesn't differ significantly, whatever their means.
    """

    variant: str
    runner_up: str | None
    comparison: Comparison | None
    undecided: tuple[Comparison, ...]

    @property
    def is_certain(self) -> bool:
        """Whether it differs significantly from every other variant."""
        return self.comparison is not None and not self.undecided


def summaries(outcome: Outcome, metric: str) -> dict[str, Summary]:
    """Returns a metric of every variant that has it, in the study's order.

    Args:
        outcome: With the results.
        metric: Its name.
    """
    found = {}
    for variant in outcome.study.variants:
        values = {
            each.seed: each.metrics[metric]
            for each in outcome.results
            if each.variant == variant and math.isfinite(each.metrics.get(metric, math.nan))
        }
        if values:
            found[variant] = Summary.of(values)
    return found


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error.

    Args:
        values: Independent ones.

    >>> mean_and_error([1.0, 2.0, 3.0])
    (2.0, 0.577350269189625...)
    """
    count = len(values)
    if not count:
        return math.nan, math.nan
    mean = math.fsum(values) / count
    if count < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((each - mean) ** 2 for each in values) / (count - 1) / count)


def paired(first: Mapping[int, float], second: Mapping[int, float], other: str = "") -> Comparison:
    """Compares two variants by a paired t-test.

    Args:
        first: Values by seed.
        second: Those that it is compared with.
        other: The name of these.

    >>> comparison = paired({0: 2.0, 1: 3.0, 2: 4.5}, {0: 1.0, 1: 2.0, 2: 3.0})
    >>> round(comparison.difference, 3), round(comparison.p, 3)
    (1.167, 0.02)
    """
    from scipy.stats import t

    differences = [first[seed] - second[seed] for seed in first if seed in second]
    mean, error = mean_and_error(differences)
    if len(differences) < 2:
        return Comparison(other, len(differences), mean, error, math.nan)
    if error == 0:  # all differ by the same
        return Comparison(other, len(differences), mean, error, 1.0 if mean == 0 else 0.0)
    p = 2 * float(t.sf(abs(mean / error), len(differences) - 1))
    return Comparison(other, len(differences), mean, error, p)


def holm(ps: Iterable[float]) -> list[float]:
    """Corrects p-values for their number, so that one of them is wrongly significant as seldom as a single one.

    Args:
        ps: Of all comparisons; NaN where there is none, which counts for nothing.

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


def against_baseline(outcome: Outcome, metric: str) -> dict[str, Comparison]:
    """Compares every other variant with the baseline; empty where that has no result.

    Args:
        outcome: With the results.
        metric: By which.
    """
    found, baseline = summaries(outcome, metric), outcome.study.baseline
    if baseline not in found:
        return {}
    others = [variant for variant in found if variant != baseline]
    return dict(
        zip(
            others,
            _corrected([paired(found[each].values, found[baseline].values, baseline) for each in others]),
            strict=True,
        )
    )


def best_of(outcome: Outcome, metric: str) -> Best | None:
    """Returns the best variant, and whether it is more than chance that it is; None without results.

    Args:
        outcome: With the results.
        metric: By which.
    """
    found = summaries(outcome, metric)
    if not found:
        return None
    ranked = sorted(found, key=lambda name: found[name].mean, reverse=not lower_is_better(metric))
    best, others = ranked[0], ranked[1:]
    if not others:
        return Best(best, None, None, ())
    comparisons = _corrected([paired(found[best].values, found[other].values, other) for other in others])
    return Best(best, others[0], comparisons[0], tuple(each for each in comparisons if not each.is_significant))


def _corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    ps = holm(each.p for each in comparisons)
    return [replace(each, p=p) for each, p in zip(comparisons, ps, strict=True)]
