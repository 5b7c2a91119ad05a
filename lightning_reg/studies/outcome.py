"""What a study is and what came of it, as plain values: what runs it makes them, what reports on it reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_reg.core.metric_names import lower_is_better

__all__ = ["Axis", "Failure", "Outcome", "Result", "Study", "collected"]


@dataclass(frozen=True)
class Axis:
    """What variants differ in where that is one number.

    Attributes:
        label: What the number is.
        values: Of each variant, in their order.
        logarithmic: Whether factors rather than differences are shown alike.
    """

    label: str
    values: Sequence[float]
    logarithmic: bool = False


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        name: Of the study's file, without its ending.
        question: What the study is to answer, a sentence or two.
        variants: Names, in the order that they are shown in.
        baseline: The variant that the others are compared with.
        seeds: The same for every variant, which pairs them.
        metric: By which variants are compared, ``test/accuracy``.
        collect: What is kept of each run beside its metrics and curves: ``weights``, ``activations``, ``reload``,
            ``predictions``.
        axis: None where variants don't differ in one number.
        better: Whether less or more of the metric is better, ``lower`` or ``higher``; its name tells where None.
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
        """Whether less of a metric is better.

        Args:
            metric: The one by which variants are compared, or another.
        """
        return self.better == "lower" if self.better and metric == self.metric else lower_is_better(metric)


@dataclass(frozen=True)
class Result:
    """What one run measured.

    Attributes:
        metrics: By split and name, ``train/loss``, ``validation/accuracy``, ``test/accuracy``: of the weights that
            were selected on the validation part; or what a computation returned.
        curves: By name, ``train/loss``, ``validation/loss``: a pair (epoch, value) for each that was measured.
        collected: By collector, plain values.
        seconds: How long it took.
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
        message: Of the error, one line.
    """

    variant: str
    seed: int
    message: str


@dataclass(frozen=True)
class Outcome:
    """A study with all that came of it.

    Attributes:
        results: One a run that has ended, in any order.
        failures: Runs that ended with an error.
        command: What made it, ready to be run again.
        commands: By variant, the command that trains it alone, with the first seed; none for computations.
        versions: Of the packages that took part, of Python, and the machine's processor, by name.
        seconds: Of all runs together.
        quick: Whether this was the short form.
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
    """Returns what a collector kept of each run, by variant, of those variants that have any."""
    found = {
        variant: [
            result.collected[collector]
            for result in outcome.results
            if result.variant == variant and collector in result.collected
        ]
        for variant in outcome.study.variants
    }
    return {variant: runs for variant, runs in found.items() if runs}
