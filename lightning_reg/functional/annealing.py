"""Schedules: values that change in the course of training."""

import math
from typing import Literal

__all__ = ["Annealing", "annealed", "cycle_ends", "cyclic"]

Annealing = Literal["linear", "cosine"]


def annealed(start: float, end: float, progress: float, kind: Annealing = "cosine") -> float:
    r"""Returns a value annealed from start to end.

    .. math:: (1 - \alpha) s + \alpha e, \quad \alpha = t \text{ or } (1 - \cos \pi t) / 2

    Args:
        start: First value s, in any unit.
        end: Last value e, in the same unit.
        progress: Fraction t of the way; below 0 the value is the start, above 1 the end.
        kind: Shape of the curve: ``"linear"``, or ``"cosine"``, which is slow at both ends.

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
        high: Highest learning rate η₁, from which a cycle falls.
        low: Lowest learning rate η₂, reached in the last step of a cycle.
        step: Step i, counted from 0.
        length: Number c of steps in a cycle.

    Reference:
        Pavel Izmailov et al.: Averaging Weights Leads to Wider Optima and Better Generalization, UAI 2018,
        arXiv:1803.05407.

    >>> [cyclic(1.0, 0.0, step, 2) for step in range(3)]
    [0.5, 0.0, 0.5]
    """
    t = (step % length + 1) / length
    return (1 - t) * high + t * low


def cycle_ends(steps: int, cycles: int, growth: float = 1.0) -> list[int]:
    r"""Returns the number of steps after which each cycle ends; the last one ends with training.

    .. math:: e_i = \operatorname{round}\left(T \sum_{j \le i} g^j \big/ \sum_{j < M} g^j\right)

    Args:
        steps: Number T of steps of the whole training.
        cycles: Number M of cycles.
        growth: Ratio g of a cycle's length to that of the one before.

    >>> cycle_ends(100, 3), cycle_ends(105, 3, growth=2)
    ([33, 67, 100], [15, 45, 105])
    """
    lengths = [growth**index for index in range(cycles)]
    total = sum(lengths)
    return [round(steps * sum(lengths[: index + 1]) / total) for index in range(cycles)]
