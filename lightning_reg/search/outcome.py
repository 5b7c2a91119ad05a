"""What came of a search, as plain values: what ran it makes them, what reports on it reads them."""

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
    """What a part of the cocktail is worth.

    Attributes:
        without: Summary of the cocktail without it.
        comparison: The whole cocktail compared with that one; differences are those of the metric, whatever is better.
        gain: By how much the cocktail is better, whichever direction is.
        earns: Whether leaving it out costs more than a standard error.
    """

    switch: str
    without: Summary
    comparison: Comparison
    gain: float
    earns: bool


@dataclass(frozen=True)
class Confirmation:
    """What fresh seeds say.

    Attributes:
        metric: By which, of the test part where there is one.
        comparisons: Of the cocktail with each other variant, corrected for their number.
        parts: Of the cocktail, one a switch.
    """

    metric: str
    seeds: Sequence[int]
    summaries: Mapping[str, Summary]
    comparisons: Mapping[str, Comparison]
    parts: Sequence[Part]

    @property
    def idle(self) -> list[str]:
        """The switches that don't earn their place."""
        return [part.switch for part in self.parts if not part.earns]


@dataclass(frozen=True)
class SearchOutcome:
    """A search with all that came of it.

    Attributes:
        metric: By which trials were judged.
        prefers_less: Whether less of it is better.
        splits: On how many validation splits each was measured.
        tried: All trials that have ended, by position.
        best: The best of them; None where none has a value.
        importances: How much each switch and each strength mattered, by name.
        notes: What was left out, and what decides over what the base has.
        confirmation: None where there was none.
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
        """Returns trials of some kinds.

        Args:
            kinds: ``search``, ``plain``, ``base``, ``preset``, ``alone``.
        """
        return [entry for entry in self.tried if entry.kind in kinds]

    def words(self, cocktail: Cocktail | None) -> str:
        """Returns a cocktail in words."""
        return in_words(self.space, cocktail)


COCKTAIL = "cocktail"


def without(switch: str) -> str:
    """Returns the name of the variant that lacks a part.

    Args:
        switch: The part that is left out.
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
    """Returns what the confirmation's runs say; None where the cocktail has no result.

    Args:
        results: Of the runs; ``cocktail`` and ``without ...`` are among their variants.
        seeds: Those of the confirmation.
        prefers_less: Whether less of the metric is better.

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
        # Of a cocktail of one part the rest is plain.
        name = "plain" if len(cocktail) == 1 and without(switch) not in comparisons else without(switch)
        if name in comparisons:
            found = comparisons[name]
            gain = sign * found.difference
            earns = gain > (0.0 if math.isnan(found.error) else found.error)
            parts.append(Part(switch, summaries[name], found, gain, earns))
    return Confirmation(metric, tuple(seeds), summaries, comparisons, parts)


def as_json(outcome: SearchOutcome) -> dict[str, Any]:
    """Returns a search for scripts: plain values, None in the place of what isn't finite."""
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
