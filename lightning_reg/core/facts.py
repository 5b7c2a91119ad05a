"""What a technique's class declares about itself, for the audit, the charts, the documentation and the search."""

import math
from dataclasses import dataclass
from enum import Enum, IntEnum

__all__ = [
    "PENALTY_CHARTS",
    "SCHEDULE_CHART",
    "TERMS",
    "Chart",
    "Choice",
    "Linear",
    "Log",
    "Place",
    "Position",
    "Range",
    "middle",
]


class Place(Enum):
    """Stage of the training step at which a technique acts."""

    BATCH = "batch"
    FORWARD = "forward"
    LOSS = "loss"
    GRADIENT = "gradient"
    WEIGHTS = "weights"
    RUN = "run"


class Position(IntEnum):
    """The order of techniques around the optimizer's step."""

    OUTSIDE = -1  # acts elsewhere: on batches, layers, the loss
    SHARPNESS = 0  # replaces the gradient of the loss, to which penalties are then added
    PENALTY = 1
    CENTRALIZATION = 2
    NOISE = 3
    CONSTRAINT = 4  # after the step, where penalties have shrunk weights and before updates are measured
    MEASUREMENT = 5  # before clipping; values after clipping are measured later
    CLIPPING = 6
    LOOKAHEAD = 7  # after the step and its constraints, before averages
    AVERAGING = 8  # sees the weights as the batch leaves them
    RESTORING = 9  # when training has ended, after averages have been put in


TERMS = (Position.PENALTY, Position.CENTRALIZATION, Position.NOISE)
"""Positions of what joins the gradients, and is clipped with them."""


@dataclass(frozen=True)
class Chart:
    """Curves that share a chart of TensorBoard's custom scalars.

    Attributes:
        category: Heading above the chart.
        tags: Regular expression over tags, matched from their beginning.
        needs: Attribute of the technique that must be true for the curves to exist; empty if there is none.
    """

    category: str
    title: str
    tags: str
    needs: str = ""


SCHEDULE_CHART = Chart("Schedules", "strengths, rates and learning rates", r"(schedule/|dropout/|lr-|grad/noise$)")
PENALTY_CHARTS = (
    Chart("Penalties", "value", r"penalty/(?!.*(_share|_zeros)$)"),
    Chart("Penalties", "share of the loss", r"penalty/.*_share$"),
)


@dataclass(frozen=True)
class Log:
    """Usual range of a strength, searched on a logarithmic scale."""

    setting: str
    low: float
    high: float


@dataclass(frozen=True)
class Linear:
    """Usual range of a setting; integers only if both bounds are integers."""

    setting: str
    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """Usual values of a setting that takes one of a few."""

    setting: str
    values: tuple[str | int | float | bool, ...]


Range = Log | Linear | Choice


def middle(usual: Range) -> str | int | float | bool:
    """Returns the middle of a usual range: a technique at its usual strength.

    >>> middle(Log("weight", 1e-4, 1e-2)), middle(Linear("k", 5, 10)), middle(Choice("kind", ("max", "z")))
    (0.001, 7, 'max')
    """
    if isinstance(usual, Choice):
        return usual.values[0]
    if isinstance(usual, Log):
        return float(f"{math.sqrt(usual.low * usual.high):.3g}")
    center = (usual.low + usual.high) / 2
    return int(center) if isinstance(usual.low, int) and isinstance(usual.high, int) else center
