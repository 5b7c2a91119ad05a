"""The colorful dimension: a layer's histogram as a column of colors for every measured step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_reg.core.charts import PLAIN_TEXT, pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLUMN_BINS", "column_edges", "draw_columns"]

COLUMN_BINS = 128
# Rows are spaced by asinh(a / 0.05): evenly about zero, logarithmically beyond, up to ±100.
_LINEAR, _FARTHEST = 0.05, 100.0
_TICKS = (-100, -10, -1, -0.1, 0, 0.1, 1, 10, 100)
_LONGEST_NAME = 40


def column_edges() -> Tensor:
    """Returns the bin edges of a column, (COLUMN_BINS + 1,), the same for every layer."""
    farthest = math.asinh(_FARTHEST / _LINEAR)
    # Zero lies at the beginning of the upper half's first bin; it is shown there.
    return torch.linspace(-farthest, farthest, COLUMN_BINS + 1, dtype=torch.float64).sinh() * _LINEAR


def draw_columns(layers: Mapping[str, Tensor], steps: Sequence[int], *, per_row: int = 4) -> Tensor:
    """Draws one panel per layer, side by side in rows, in the order in which the layers are given.

    Time goes to the right, values upward on a scale that is linear about zero and logarithmic beyond; color is the
    logarithm of the share of values.

    Args:
        layers: Columns of each layer by name, (T, COLUMN_BINS), shares or counts.
        steps: Steps of the columns, evenly spaced.
        per_row: Number of panels in a row.

    Returns:
        An image, (H, W, 3), uint8.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    across = min(per_row, len(layers))
    rows = math.ceil(len(layers) / across)
    with mpl.rc_context({**PLAIN_TEXT, "font.size": 7}):
        figure = Figure(figsize=(3.0 * across, 2.3 * rows), dpi=100)
        # By hand, because a layout engine takes longer than drawing.
        figure.subplots_adjust(0.14 / across, 0.09 / rows, 1 - 0.04 / across, 1 - 0.09 / rows, 0.2, 0.3)
        for index, (name, columns) in enumerate(layers.items()):
            axes = figure.add_subplot(rows, across, index + 1)
            axes.set_title(name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}", loc="left")
            _draw(axes, columns, steps)
        return pixels(figure)


def _draw(axes: Axes, columns: Tensor, steps: Sequence[int]) -> None:
    shares = columns.double() / columns.double().sum(1, keepdim=True).clamp(min=1e-12)
    lowest, highest = _rows_in_use(shares)
    heights = torch.log1p(shares * 1e4) / math.log1p(1e4)
    half = (steps[-1] - steps[0]) / (len(steps) - 1) / 2 if len(steps) > 1 else 0.5  # the width of a column
    axes.imshow(
        heights.T.numpy(),
        cmap="inferno",  # more is lighter, so that it is readable without color, too
        vmin=0,
        vmax=1,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(steps[0] - half, steps[-1] + half, 0, COLUMN_BINS),
    )
    axes.set_ylim(lowest, highest)
    # Ticks that would overlap are left out.
    shown: list[float] = []
    for value in sorted(_TICKS, key=abs):
        place = _row_of(value)
        if lowest <= place <= highest and all(
            abs(place - _row_of(other)) > 0.06 * (highest - lowest) for other in shown
        ):
            shown.append(value)
    axes.set_yticks([_row_of(value) for value in shown], [f"{value:g}" for value in shown])
    axes.set_xticks([steps[0], steps[-1]], [f"step {steps[0]}", f"{steps[-1]}"])
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")


def _rows_in_use(shares: Tensor) -> tuple[int, int]:
    """Returns the first row in use and the one behind the last, with a margin."""
    used = (shares > 1e-5).any(0).nonzero().flatten()
    middle = COLUMN_BINS // 2
    lowest, highest = (int(used[0]), int(used[-1]) + 1) if len(used) else (middle, middle + 1)
    return max(0, min(lowest, middle) - 3), min(COLUMN_BINS, max(highest, middle) + 3)


def _row_of(value: float) -> float:
    farthest = math.asinh(_FARTHEST / _LINEAR)
    return (math.asinh(value / _LINEAR) / farthest + 1) / 2 * COLUMN_BINS
