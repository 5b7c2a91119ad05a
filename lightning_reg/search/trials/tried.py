"""A trial, when it has been proposed and when it has ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_reg.search.spaces.space import Cocktail

if TYPE_CHECKING:
    from optuna import Trial

__all__ = ["Proposal", "Tried"]


@dataclass(frozen=True)
class Proposal:
    """A trial that has been proposed.

    Attributes:
        position: Which of the search's trials it is, from 0.
        kind: ``search``, or that of a first trial.
        cocktail: None for the base as it is.
    """

    position: int
    kind: str
    name: str
    cocktail: Cocktail | None
    trial: "Trial" = field(repr=False, compare=False)


@dataclass(frozen=True)
class Tried:
    """A trial that has ended.

    Attributes:
        position: Which of the search's trials it is, from 0.
        kind: ``search``, ``plain``, ``base``, ``preset`` or ``alone``.
        cocktail: None for the base as it is.
        value: Mean of the metric over splits; None where it failed.
        values: Of each split that was measured.
        seconds: Duration of all its runs.
        step_seconds: Duration of a training step; None where it isn't known.
        excess: By how much its step takes longer than it may, in plain steps; None where it may take any time.
        parameters: As the sampler knows the cocktail.
        message: Why it failed, or was pruned.
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
