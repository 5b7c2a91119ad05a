"""Which function draws the plot of which technique: that of its class, of a class it is made of, or of its place."""

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from lightning_reg.core.facts import Log, Place, middle
from lightning_reg.core.technique import Technique

__all__ = ["Draw", "drawer", "draws", "of_place", "own", "usual"]

Kind = type[Technique]
Draw = Callable[[Kind, Figure], str]
"""Draws into an empty figure, and returns the sentence below it."""

_OF_CLASSES: dict[type, Draw] = {}
_OF_PLACES: dict[Place | str, Draw] = {}
_WATCHES = "watches"


def draws(*what: type[Technique] | Place | str) -> Callable[[Draw], Draw]:
    """Registers a function for classes and those made of them, for a place, or for what ``"watches"``."""

    def register(draw: Draw) -> Draw:
        for one in what:
            if isinstance(one, type):
                _OF_CLASSES[one] = draw
            else:
                _OF_PLACES[one] = draw
        return draw

    return register


def own(kind: Kind) -> Draw | None:
    """Returns what draws one class alone; None where there is no such function."""
    return _OF_CLASSES.get(kind)


def of_place(kind: Kind) -> Draw | None:
    """Returns what draws who has no other in the place of the step where a technique acts."""
    return _OF_PLACES.get(_WATCHES if kind.only_watches else kind.place)


def drawer(kind: Kind) -> Draw | None:
    """Returns what draws a technique's plot; None where nothing does.

    Args:
        kind: The technique's class.
    """
    of_classes = (_OF_CLASSES[base] for base in kind.__mro__ if base in _OF_CLASSES)
    return next(of_classes, of_place(kind))


def usual(kind: Kind, strength: float | None = None, *, highest: bool = False, **settings: Any) -> Technique:
    """Returns a technique at its usual settings.

    Args:
        kind: Its class.
        strength: What strengths are, which are searched by their logarithm; their usual values where None.
        highest: Whether a strength is the highest that is usual rather than one from the middle.
        settings: Others.
    """
    found: dict[str, Any] = {usually.setting: middle(usually) for usually in kind.usual_ranges}
    for usually in kind.usual_ranges:
        if isinstance(usually, Log) and (highest or strength is not None):
            found[usually.setting] = usually.high if strength is None else strength
    return kind(**{**found, **settings})
