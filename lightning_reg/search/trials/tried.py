"""Proposed and finished trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_reg.search.spaces.space import Cocktail

if TYPE_CHECKING:
    from optuna import Trial

__all__ = ["Proposal", "Tried"]


@dataclass(frozen=True)
class Proposal:
    """A proposed trial.

    Attributes:
        position: Index of the trial in the search, from 0.
        kind: ``search``, ``plain``, ``base``, ``preset`` or ``alone``.
        name: Name of the trial.
        cocktail: The cocktail; None for the unchanged base.
        trial: The trial in Optuna.
    """

    position: int
    kind: str
    name: str
    cocktail: Cocktail | None
    trial: Trial = field(repr=False, compare=False)


@dataclass(frozen=True)
class Tried:
    """A finished trial.

    Attributes:
        position: Index of the trial in the search, from 0.
        kind: ``search``, ``plain``, ``base``, ``preset`` or ``alone``.
        name: Name of the trial.
        cocktail: The cocktail; None for the unchanged base.
        value: Mean of the metric over splits; None if the trial failed or was pruned.
        values: Value of the metric on each finished split.
        seconds: Duration of all its runs in seconds.
        step_seconds: Duration of a training step in seconds; None if unknown.
        excess: Step duration above the limit, in steps of the plain run; None if there is no limit.
        parameters: The cocktail as parameters of the sampler.
        message: Reason why it failed or was pruned; empty otherwise.
    """

    position: int
    kind: str
    name: str
    cocktail: Cocktail | None
    value: float | None
    values: Sequence[float] = ()
    seconds: float = 0.0
    step_seconds: float | None = None
    excess: float | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
