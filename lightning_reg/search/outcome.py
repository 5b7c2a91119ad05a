"""The outcome of a search as plain values, for reports and scripts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_reg.search.spaces.space import Cocktail, Space
from lightning_reg.search.trials.tried import Tried
from lightning_reg.search.words import in_words
from lightning_reg.studies.outcome import Result
from lightning_reg.studies.statistics import Comparison, Summary, holm_corrected, paired

__all__ = ["Confirmation", "Part", "SearchOutcome", "as_json", "confirmed"]


@dataclass(frozen=True)
class Part:
    """The contribution of one part of the cocktail.

    Attributes:
        switch: Name of the switch.
        without: Summary of the cocktail without this part.
        comparison: Comparison of the whole cocktail with the one without this part, in units of the metric.
        gain: Improvement due to this part, positive whether lower or higher values are better.
        earns: Whether the gain is larger than its standard error.
    """

    switch: str
    without: Summary
    comparison: Comparison
    gain: float
    earns: bool


@dataclass(frozen=True)
class Confirmation:
    """The results of the confirmation with fresh seeds.

    Attributes:
        metric: Metric of the comparison, on the test split if there is one.
        seeds: Seeds of the runs.
        summaries: Summary of each variant over seeds, by variant.
        comparisons: Comparisons of the cocktail with each other variant, with Holm-corrected p-values.
        parts: Contributions of the cocktail's parts, one per switch.
    """

    metric: str
    seeds: Sequence[int]
    summaries: Mapping[str, Summary]
    comparisons: Mapping[str, Comparison]
    parts: Sequence[Part]

    @property
    def idle(self) -> list[str]:
        """Names of the switches that don't earn their place."""
        return [part.switch for part in self.parts if not part.earns]


@dataclass(frozen=True)
class SearchOutcome:
    """A search and its results.

    Attributes:
        name: Name of the search.
        title: Title of the report.
        metric: Metric that was optimized.
        prefers_less: Whether lower values of the metric are better.
        splits: Number of validation splits that each trial was evaluated on.
        seed: Seed of the sampler and the splits.
        tried: All finished trials, by position.
        best: The best of them; None if none has a value.
        importances: Importance of each switch and each strength, by name.
        notes: Messages about switches that were left out, and about parts of the base that switches override.
        command: Command that resumes the search; empty if it was started from Python.
        versions: Versions of the software and hardware in use, by name.
        confirmation: Results of the confirmation; None if there was none.
    """

    name: str
    title: str
    space: Space
    metric: str
    prefers_less: bool
    splits: int
    seed: int
    tried: Sequence[Tried]
    best: Tried | None
    importances: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    confirmation: Confirmation | None = None

    def of_kind(self, *kinds: str) -> list[Tried]:
        """Returns the trials of some kinds.

        Args:
            kinds: One or more of ``search``, ``plain``, ``base``, ``preset``, ``alone``.
        """
        return [entry for entry in self.tried if entry.kind in kinds]

    def words(self, cocktail: Cocktail | None) -> str:
        """Describes a cocktail in words."""
        return in_words(self.space, cocktail)


COCKTAIL = "cocktail"


def without(switch: str) -> str:
    """Returns the name of the variant without a part.

    Args:
        switch: Name of the switch that is left out.
    """
    return f"without {switch}"


def confirmed(
    results: Sequence[Result],
    metric: str,
    seeds: Sequence[int],
    cocktail: Cocktail,
    *,
    prefers_less: bool,
) -> Confirmation | None:
    """Evaluates the runs of the confirmation; returns None if the cocktail has no result.

    Args:
        results: Results of the runs, with variants such as ``cocktail`` and ``without ...``.
        metric: Metric of the comparison.
        seeds: Seeds of the confirmation.
        cocktail: The cocktail that is confirmed.
        prefers_less: Whether lower values of the metric are better.

    >>> measured = {"cocktail": [0.9, 0.92], "without l1": [0.8, 0.81], "plain": [0.7, 0.73]}
    >>> results = [
    ...     Result(variant, seed, {"test/accuracy": value})
    ...     for variant, values in measured.items()
    ...     for seed, value in enumerate(values)
    ... ]
    >>> found = confirmed(results, "test/accuracy", [0, 1], {"l1": {}}, prefers_less=False)
    >>> found.parts[0].switch, round(found.parts[0].gain, 3), found.parts[0].earns
    ('l1', 0.105, True)
    """
    values: dict[str, dict[int, float]] = {}
    for result in results:
        if math.isfinite(result.metrics[metric]):
            values.setdefault(result.variant, {})[result.seed] = result.metrics[metric]
    if COCKTAIL not in values:
        return None
    others = [name for name in values if name != COCKTAIL]
    corrected = holm_corrected([paired(values[COCKTAIL], values[name], name) for name in others])
    comparisons = dict(zip(others, corrected, strict=True))
    summaries = {name: Summary.of(by_seed) for name, by_seed in values.items()}
    sign = -1 if prefers_less else 1
    parts = []
    for switch in cocktail:
        # A cocktail of one part without that part is plain.
        name = "plain" if len(cocktail) == 1 and without(switch) not in comparisons else without(switch)
        if name in comparisons:
            found = comparisons[name]
            gain = sign * found.difference
            earns = gain > (0.0 if math.isnan(found.error) else found.error)
            parts.append(Part(switch, summaries[name], found, gain, earns))
    return Confirmation(metric, tuple(seeds), summaries, comparisons, parts)


def as_json(outcome: SearchOutcome) -> dict[str, Any]:
    """Returns a search as values for JSON, with None in place of numbers that aren't finite."""
    best, confirmation = outcome.best, outcome.confirmation
    content: dict[str, Any] = {
        "title": outcome.title,
        "metric": outcome.metric,
        "better": "lower" if outcome.prefers_less else "higher",
        "splits": outcome.splits,
        "seed": outcome.seed,
        "command": outcome.command,
        "versions": dict(outcome.versions),
        "notes": list(outcome.notes),
        "best": None if best is None else {**asdict(best), "words": outcome.words(best.cocktail)},
        "importances": dict(outcome.importances),
        "trials": [asdict(entry) for entry in outcome.tried],
    }
    if confirmation is not None:
        content["confirmation"] = {
            "metric": confirmation.metric,
            "seeds": list(confirmation.seeds),
            "variants": {
                name: {"values": {str(seed): value for seed, value in entry.values.items()}, "mean": entry.mean}
                | {"standard_error": entry.error}
                for name, entry in confirmation.summaries.items()
            },
            "cocktail_against": {
                name: {
                    "difference": entry.difference,
                    "standard_error": entry.error,
                    "p": entry.p,
                    "pairs": entry.pairs,
                }
                for name, entry in confirmation.comparisons.items()
            },
            "parts": {part.switch: {"gain": part.gain, "earns_its_place": part.earns} for part in confirmation.parts},
        }
    return {key: _finite(value) for key, value in content.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value
