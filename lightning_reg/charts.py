"""Line charts as pictures, for loggers: drawn by Pillow, so that no plotting library is needed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["Chart", "draw", "nice_ticks"]

_SCALE = 2  # drawn larger and made smaller, which smooths edges
_WIDTH, _HEIGHT = 360, 260  # as wide as TensorBoard shows a picture, which it doesn't shrink well
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 14, 62, 40
_WIDE = 20  # factor between values beyond which only a logarithmic axis shows both
_COLOURS = ("#1f77b4", "#d95f02", "#2ca02c", "#7b3294")  # told apart by colour-blind people, too
_INK, _GRID = "#333333", "#e4e4e4"


@dataclass(frozen=True)
class Chart:
    """Curves over common positions, and what happened where.

    The axis of values is logarithmic where they are positive and far apart.

    Attributes:
        title: Above it.
        x: Positions.
        curves: By name, a value for each position; those that aren't finite are left out.
        marks: Positions that a dashed line stands at, by what it says.
        x_label: What the positions are.
    """

    title: str
    x: Sequence[float]
    curves: Mapping[str, Sequence[float]]
    marks: Mapping[str, float] = field(default_factory=dict)
    x_label: str = "epoch"


def draw(charts: Sequence[Chart]) -> Tensor:
    """Draws charts below one another.

    Args:
        charts: At least one.

    Returns:
        (260 × charts, 360, 3), uint8.

    >>> draw([Chart("loss", [0, 1], {"train": [1.0, 0.5]}, {"best": 1})]).shape
    torch.Size([260, 360, 3])
    """
    size = (_WIDTH, _HEIGHT * len(charts))
    picture = Image.new("RGB", (size[0] * _SCALE, size[1] * _SCALE), "white")
    for index, chart in enumerate(charts):
        _Drawing(picture, index * _HEIGHT, chart).draw()
    return torch.from_numpy(np.array(picture.resize(size, Image.Resampling.LANCZOS)))


def nice_ticks(low: float, high: float, *, most: int = 6, whole: bool = False) -> list[float]:
    """Returns round numbers, evenly apart, that enclose a range.

    Args:
        low: Its lower end.
        high: Its upper end.
        most: How many steps there are between them at the most, roughly.
        whole: Whether only whole numbers will do.

    >>> nice_ticks(0.03, 0.41), nice_ticks(0, 3, whole=True)
    ([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], [0.0, 1.0, 2.0, 3.0])
    """
    span = high - low or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / most))
    step: float = next(each * magnitude for each in (1, 2, 5, 10) if each * magnitude * most >= span * (1 - 1e-9))
    step = max(1.0, round(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


class _Drawing:
    """One chart on a picture.

    Args:
        picture: That is drawn on.
        top: Where the chart begins, in pixels before they are scaled.
        chart: What is drawn.
    """

    def __init__(self, picture: Image.Image, top: int, chart: Chart) -> None:
        self.pen = ImageDraw.Draw(picture)
        self.font = ImageFont.load_default(size=11 * _SCALE)
        self.heading = ImageFont.load_default(size=13 * _SCALE)
        self.top = top
        self.chart = chart
        values = [value for curve in chart.curves.values() for value in curve if math.isfinite(value)]
        low, high = min(values, default=0.0), max(values, default=1.0)
        self.is_logarithmic = low > 0 and high > _WIDE * low
        if self.is_logarithmic:
            low, high = math.log10(low), math.log10(high)
        self.y_ticks = nice_ticks(low, high, whole=self.is_logarithmic)
        self.x_ticks = nice_ticks(min(chart.x, default=0.0), max(chart.x, default=1.0), whole=True)

    def draw(self) -> None:
        """Draws all of it."""
        self._axes()
        for name, position in self.chart.marks.items():
            self._mark(name, position)
        right: float = _WIDTH - _RIGHT
        for (name, values), colour in reversed(list(zip(self.chart.curves.items(), _COLOURS, strict=False))):
            self._curve(values, colour)
            right -= self._width(name)
            self._text(right, 16, name, "lm", colour)
            self._line([(right - 20, 16), (right - 5, 16)], colour, 2)
            right -= 34
        self.pen.text(self._scaled(10, 16), self.chart.title, _INK, self.heading, "lm")

    def _axes(self) -> None:
        for tick in self.y_ticks:
            y = self._on_axis(tick)
            self._line([(self._x(self.x_ticks[0]), y), (self._x(self.x_ticks[-1]), y)], _GRID, 1)
            self._text(_LEFT - 6, y, f"{10**tick if self.is_logarithmic else tick:g}", "rm")
        bottom = self._on_axis(self.y_ticks[0])
        for tick in self.x_ticks:
            self._line([(self._x(tick), bottom), (self._x(tick), bottom + 4)], _INK, 1)
            self._text(self._x(tick), bottom + 6, f"{tick:g}", "ma")
        self._line([(self._x(self.x_ticks[0]), bottom), (self._x(self.x_ticks[-1]), bottom)], _INK, 1)
        self._text((self._x(self.x_ticks[0]) + self._x(self.x_ticks[-1])) / 2, _HEIGHT - 17, self.chart.x_label, "ma")

    def _curve(self, values: Sequence[float], colour: str) -> None:
        points = [
            (self._x(x), self._y(value)) for x, value in zip(self.chart.x, values, strict=True) if math.isfinite(value)
        ]
        self._line(points, colour, 2)
        if len(points) <= 1:
            for x, y in points:
                self.pen.ellipse([*self._scaled(x - 3, y - 3), *self._scaled(x + 3, y + 3)], fill=colour)

    def _mark(self, name: str, position: float) -> None:
        x, top, bottom = self._x(position), _TOP, self._on_axis(self.y_ticks[0])
        for start in range(top, round(bottom), 6):
            self._line([(x, start), (x, min(start + 3, bottom))], _INK, 1)
        beyond = x + self._width(name) + 4 > _WIDTH - 4
        # Below one another where marks stand close together.
        row = list(self.chart.marks).index(name)
        self._text(x - 4 if beyond else x + 4, top - 22 + 13 * row, name, "rm" if beyond else "lm")

    def _x(self, value: float) -> float:
        share = (value - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        return self._on_axis(math.log10(value) if self.is_logarithmic else value)

    def _on_axis(self, value: float) -> float:
        share = (value - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def _text(self, x: float, y: float, text: str, anchor: str, colour: str = _INK) -> None:
        self.pen.text(self._scaled(x, y), text, colour, self.font, anchor)

    def _line(self, points: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        self.pen.line([self._scaled(*point) for point in points], colour, round(width * _SCALE), "curve")

    def _width(self, text: str) -> float:
        return self.font.getlength(text) / _SCALE

    def _scaled(self, x: float, y: float) -> tuple[float, float]:
        return x * _SCALE, (self.top + y) * _SCALE
