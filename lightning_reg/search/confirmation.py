"""The confirmation of a search as a study: plain, base, the cocktail, each part left out, the best single technique."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_reg.core.metric_names import short_name
from lightning_reg.search.outcome import COCKTAIL, without
from lightning_reg.search.overlay import differences, with_cocktail
from lightning_reg.search.spaces.space import Cocktail, Space
from lightning_reg.search.trials.tried import Tried
from lightning_reg.studies.definition import Piece

__all__ = ["FIRST_SEED", "best_alone", "compared", "confirmation_file", "confirmation_metric", "variants_of"]

FIRST_SEED = 1000
"""Smallest seed of the confirmation; the seeds of trials are smaller."""


def confirmation_metric(metric: str, *, has_test: bool) -> str:
    """Returns the metric of the confirmation, named as in studies.

    Args:
        metric: Metric of the search, as logged in validation.
        has_test: Whether there is a test split.

    >>> confirmation_metric("val/balanced_accuracy", has_test=True)
    'test/balanced_accuracy'
    """
    return f"{'test' if has_test else 'validation'}/{short_name(metric)}"


def best_alone(tried: Sequence[Tried], *, prefers_less: bool) -> Tried | None:
    """Returns the best trial of a technique alone; None if none has a value.

    Args:
        prefers_less: Whether lower values of the metric are better.
    """
    alone = [candidate for candidate in tried if candidate.kind == "alone" and candidate.value is not None]
    sign = 1 if prefers_less else -1
    return min(alone, key=lambda candidate: sign * float(candidate.value or 0.0), default=None)


def compared(cocktail: Cocktail, alone: Tried | None, *, has_base: bool = False) -> dict[str, Cocktail | None]:
    """Returns the cocktails to compare, by name: the best, plain, each part left out, the best technique alone.

    Args:
        alone: Trial of the best single technique.
        has_base: Whether to include the unchanged base, as None.
    """
    found: dict[str, Cocktail | None] = {COCKTAIL: cocktail, "plain": {}}
    if has_base:
        found["base"] = None
    if len(cocktail) > 1:
        for switch in cocktail:
            found[without(switch)] = {name: values for name, values in cocktail.items() if name != switch}
    if alone is not None and alone.cocktail not in found.values():
        found[alone.name] = alone.cocktail
    return found


def variants_of(space: Space, base: Mapping[str, Any], cocktail: Cocktail, alone: Tried | None) -> dict[str, Any]:
    """Returns the settings that each variant changes in the base, by their command-line names; no two are the same.

    Args:
        space: Search space of the cocktail.
        base: Settings of the base, as in a configuration.
        alone: Trial of the best single technique.
    """
    found: dict[str, Any] = {}
    for name, candidate in compared(cocktail, alone, has_base=True).items():
        changed = {} if candidate is None else differences(space, base, with_cocktail(space, base, candidate))
        if changed not in found.values():
            found[name] = changed
    return found


def confirmation_file(
    title: str,
    base: Sequence[Piece],
    variants: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    metric: str,
    *,
    prefers_less: bool,
) -> str:
    """Returns the confirmation as the text of a study file.

    Args:
        title: Title of the search.
        base: Pieces of the base configuration.
        variants: Variants as returned by :func:`variants_of`.
        seeds: Seeds of the confirmation.
        metric: Metric as returned by :func:`confirmation_metric`.
        prefers_less: Whether lower values of the metric are better.
    """
    content = {
        "title": f"{title}: confirmation",
        "question": "Is the cocktail better than none, than the base and than each of its parts left out?",
        "base": [piece.as_posix() if isinstance(piece, Path) else dict(piece) for piece in base],
        "variants": {name: dict(changed) for name, changed in variants.items()},
        "baseline": COCKTAIL,
        "metric": metric,
        "better": "lower" if prefers_less else "higher",
        "seeds": list(seeds),
    }
    comment = "# lightning-reg study confirm.yaml, in the folder from which the search was started\n"
    return comment + str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))
