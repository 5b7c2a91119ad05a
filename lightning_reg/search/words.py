"""Descriptions of cocktails in words."""

from collections.abc import Mapping
from typing import Any

from lightning_reg.search.spaces.space import Cocktail, Space
from lightning_reg.studies.report.numbers import number

__all__ = ["in_words", "shown_strength", "shown_value"]


def shown_value(metric: str, value: float | None) -> str:
    """Formats a value of a metric, accuracies in percent.

    Args:
        metric: Name of the metric.
        value: Value of the metric; None if there is none.

    >>> shown_value("val/accuracy", 0.9123), shown_value("val/loss", None)
    ('91.23 %', '–')
    """
    return "–" if value is None else number(metric, value)


def shown_strength(value: Any) -> str:
    """Formats a strength, with three significant digits if it is a float.

    >>> shown_strength(0.012345), shown_strength("batch"), shown_strength(5)
    ('0.0123', 'batch', '5')
    """
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def in_words(space: Space, cocktail: Cocktail | None) -> str:
    """Describes in one line which switches are on and how strong.

    Args:
        space: Search space of the cocktail.
        cocktail: The cocktail; None for the unchanged base.
    """
    if cocktail is None:
        return "the base as it is"
    if not cocktail:
        return "none of the space's techniques"
    return ", ".join(_part(space, name, values) for name, values in cocktail.items())


def _part(space: Space, name: str, values: Mapping[str, Any]) -> str:
    title = space.switches[name].title if name in space.switches else name
    strengths = [f"{key} {shown_strength(value)}" for key, value in values.items()]
    if len(values) == 1:
        strengths = [shown_strength(next(iter(values.values())))]
    return f"{title} ({', '.join(strengths)})" if strengths else title
