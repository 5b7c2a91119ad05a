"""Line charts as images for loggers, drawn by matplotlib, which is imported on first use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PLAIN_TEXT", "Chart", "draw", "make_logarithmic", "pixels"]

_WIDE = 20  # factor between values beyond which only a logarithmic axis shows both
_COLORS = ("#0072b2", "#d55e00", "#008a66", "#a6478a")  # distinguishable for color-blind people, too
_DASHES = ("dashed", "dotted", "dashdot")
# Names are the user's, and may contain a $; no TeX, whatever the user's own settings are.
PLAIN_TEXT: dict[Any, Any] = {"text.parse_math": False, "text.usetex": False}


@dataclass(frozen=True)
class Chart:
    """Curves over a common horizontal axis, with marked positions.

    The vertical axis is logarithmic if the values are positive and far apart.

    Attributes:
        name: Label of the vertical axis.
        curves: Values at each position, by name of the curve; those that aren't finite are left out.
        marks: Positions of vertical lines, by label.
        x_label: Label of the horizontal axis.
    """

    name: str
    x: Sequence[float]
    curves: Mapping[str, Sequence[float]]
    marks: Mapping[str, float] = field(default_factory=dict)
    x_label: str = "epoch"


def draw(charts: Sequence[Chart]) -> Tensor:
    """Draws charts below one another.

    Returns:
        Image (260 × charts, 360, 3), uint8.

    >>> draw([Chart("loss", [0, 1], {"train": [1.0, 0.5]}, {"best": 1})]).shape
    torch.Size([260, 360, 3])
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**PLAIN_TEXT, "font.size": 8}):
        # As wide as TensorBoard shows an image, which it doesn't shrink well.
        figure = Figure(figsize=(3.6, 2.6 * len(charts)), dpi=100, layout="constrained")
        for chart, axes in zip(charts, figure.subplots(len(charts), squeeze=False)[:, 0], strict=True):
            _draw(chart, axes)
        return pixels(figure)


def _draw(chart: Chart, axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    values = [value for curve in chart.curves.values() for value in curve if math.isfinite(value)]
    for (name, curve), color in zip(chart.curves.items(), _COLORS, strict=False):
        finite = np.where(np.isfinite(curve), curve, np.nan)
        marker = "o" if np.isfinite(finite).sum() == 1 else None
        axes.plot(chart.x, finite, color=color, marker=marker, markersize=4, label=name)
    for (name, position), dashes in zip(chart.marks.items(), _DASHES, strict=False):
        axes.axvline(position, color="#333333", linewidth=1, linestyle=dashes, label=name)
    if values and min(values) > 0 and max(values) > _WIDE * min(values):
        make_logarithmic(axes, "y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.name)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)


def make_logarithmic(axes: Axes, name: str) -> None:
    """Gives an axis a logarithmic scale with labels in plain text.

    Args:
        name: Name of the axis, ``x`` or ``y``.
    """
    from matplotlib.ticker import LogFormatter

    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(LogFormatter())


def pixels(figure: Figure) -> Tensor:
    """Returns a figure as an image (H, W, 3), uint8.

    Args:
        figure: Figure that wasn't made by pyplot, which would keep it in memory.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # its methods have no types
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())
