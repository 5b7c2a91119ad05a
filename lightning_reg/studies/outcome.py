"""A study and its outcome as plain values, for execution and reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_reg.core.metric_names import lower_is_better

__all__ = ["Axis", "Failure", "Outcome", "Result", "Study", "collected"]


@dataclass(frozen=True)
class Axis:
    """The number in which the variants of a study differ.

    Attributes:
        label: Name of the number, for axis labels.
        values: Number of each variant, in the order of the variants.
        logarithmic: Whether to use a logarithmic scale.
    """

    label: str
    values: Sequence[float]
    logarithmic: bool = False


@dataclass(frozen=True)
class Study:
    """The settings of a comparison of variants.

    Attributes:
        name: Name of the study's file, without its extension.
        title: Title of the report.
        question: Question that the study answers, a sentence or two.
        variants: Names of the variants, in display order.
        baseline: Name of the variant that the others are compared with.
        seeds: Seeds, the same for every variant, which makes comparisons paired.
        metric: Metric to compare, such as ``test/accuracy``.
        collect: Results to keep of each run in addition to metrics and curves: ``weights``, ``activations``,
            ``reload``, ``predictions``.
        axis: The number in which variants differ; None if there is no such number.
        better: ``lower`` or ``higher``: which values of the metric are better; derived from its name if None.
    """

    name: str
    title: str
    question: str
    variants: Sequence[str]
    baseline: str
    seeds: Sequence[int]
    metric: str
    collect: Sequence[str] = ()
    axis: Axis | None = None
    better: str | None = None

    def prefers_less(self, metric: str) -> bool:
        """Whether lower values of a metric are better.

        Args:
            metric: Name of the study's metric, or of another one.
        """
        return self.better == "lower" if self.better and metric == self.metric else lower_is_better(metric)


@dataclass(frozen=True)
class Result:
    """The result of one run.

    Attributes:
        variant: Name of the variant.
        seed: Seed of the run.
        metrics: Metrics of the weights selected on validation, by names such as ``train/loss``,
            ``validation/accuracy``, ``test/accuracy``; or the values that a computation returned.
        curves: Learning curves as pairs (epoch, value), by names such as ``train/loss``, ``validation/loss``.
        collected: Other results as plain values, by collector.
        seconds: Duration of the run in seconds.
    """

    variant: str
    seed: int
    metrics: Mapping[str, float]
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    collected: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Failure:
    """A run that ended with an error.

    Attributes:
        variant: Name of the variant.
        seed: Seed of the run.
        message: Error message, in one line.
    """

    variant: str
    seed: int
    message: str


@dataclass(frozen=True)
class Outcome:
    """A study and its results.

    Attributes:
        results: Results of the finished runs, in any order.
        failures: Runs that ended with an error.
        command: Command that reproduces the study.
        commands: Commands that train each variant alone with the first seed, by variant; empty for computations.
        versions: Versions of the packages in use and of Python, and the machine's processor, by name.
        seconds: Total duration of all runs in seconds.
        quick: Whether this is the short form.
    """

    study: Study
    results: Sequence[Result]
    failures: Sequence[Failure] = ()
    command: str = ""
    commands: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    quick: bool = False


def collected(outcome: Outcome, collector: str) -> dict[str, list[Any]]:
    """Returns the results of a collector for each run, by variant, without variants that have none."""
    found = {
        variant: [
            result.collected[collector]
            for result in outcome.results
            if result.variant == variant and collector in result.collected
        ]
        for variant in outcome.study.variants
    }
    return {variant: runs for variant, runs in found.items() if runs}
