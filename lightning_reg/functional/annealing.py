"""Numbers that change in the course of training."""

import math
from typing import Literal

__all__ = ["Annealing", "annealed", "cyclic"]

Annealing = Literal["linear", "cosine"]


def annealed(start: float, end: float, progress: float, kind: Annealing = "cosine") -> float:
    r"""Returns a value on its way from start to end.

    .. math:: (1 - \alpha) s + \alpha e, \quad \alpha = t \text{ or } (1 - \cos \pi t) / 2

    Args:
        start: s, in any units.
        end: e, in the same units.
        progress: t; 0 and less is the start, 1 and more the end.
        kind: ``"linear"``, or ``"cosine"``, which is slow at both ends.

    >>> annealed(1.0, 0.0, 0.25, "linear")
    0.75
    """
    t = max(0.0, min(1.0, progress))
    alpha = t if kind == "linear" else (1 - math.cos(math.pi * t)) / 2
    return end * alpha + start * (1 - alpha)


def cyclic(high: float, low: float, step: int, length: int) -> float:
    r"""Returns a learning rate that falls to its lowest at the end of each cycle, and restarts.

    .. math:: (1 - t) \, \eta_1 + t \, \eta_2, \quad t = ((i \bmod c) + 1) / c

    Args:
        high: Upper learning rate η₁, where a cycle begins.
        low: η₂, reached in the last step of a cycle.
        step: i, counted from 0.
        length: c, steps in a cycle.

    Reference:
        Pavel Izmailov et al.: Averaging Weights Leads to Wider Optima and Better Generalization, UAI 2018,
        arXiv:1803.05407.

    >>> [cyclic(1.0, 0.0, step, 2) for step in range(3)]
    [0.5, 0.0, 0.5]
    """
    t = (step % length + 1) / length
    return (1 - t) * high + t * low
