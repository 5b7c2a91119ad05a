"""Figures as SVG, with the page's colors and data for its script, and as PNG."""

from __future__ import annotations

import importlib.util
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from lightning_reg.core.charts import PLAIN_TEXT
from lightning_reg.core.metric_names import is_accuracy
from lightning_reg.settings import SettingError
from lightning_reg.studies.report.numbers import readable
from lightning_reg.studies.report.svg import for_page

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GRAY",
    "GREEN",
    "INK",
    "ORANGE",
    "Chart",
    "Drawing",
    "check_can_draw",
    "drawing",
    "file_names",
    "label_of",
    "line_style",
    "name_line",
    "plain",
    "shade",
    "thinned",
]

# A color-blind-safe palette. The page's style sheet has lighter versions for dark mode.
INK, GRID, GRAY = "#2b2b2c", "#dcdcdd", "#8a8a8b"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#008a66"
_OF_VARIANTS = (BLUE, ORANGE, GREEN, "#a6478a", "#8c6d00", "#5b5fc7", "#b3394b", "#4d7c8a")
_DASHES = ("solid", "dashed", "dotted")
_IN_PAGE = {INK: "currentColor", GRID: "var(--grid)", GRAY: "var(--gray)"} | {
    color: f"var(--color-{index})" for index, color in enumerate(_OF_VARIANTS)
}
_SIZE = (3.5, 2.6)  # inches; a page shows two or three side by side, a phone one
_MOST_POINTS, _FEWEST_POINTS = 6000, 25  # of all lines of a kind; of one line
_POINTS = 72.0  # in an inch; the unit of matplotlib's SVG
Value = TypeVar("Value")


@dataclass(frozen=True)
class Chart:
    """A finished figure.

    Attributes:
        name: Name of its file, without an extension.
        title: Title above the figure.
        svg: SVG element for a page.
        png: Content of the PNG file.
        width: Width in pixels at which its text has the page's font size.
        variant: Index of the variant that it shows alone, if any.
        legend: Indices of the variants whose lines it shows together.
    """

    name: str
    title: str
    svg: str
    png: bytes
    width: int
    variant: int | None
    legend: tuple[int, ...]


@dataclass
class Drawing:
    """A figure with axes, and the data for the page's script.

    Attributes:
        value_axis: Axis of the values, ``x`` or ``y``; the pointer shows a value on y with its x, and one on x alone.
    """

    figure: Figure
    axes: Axes
    value_axis: str = "y"
    _series: dict[str, dict[str, str]] = field(default_factory=dict, init=False)

    def series(self, artist: Artist, label: str, *, variant: int | None = None, texts: Sequence[str] = ()) -> None:
        """Marks a line or an outline whose points the page shows at the pointer.

        Args:
            artist: The line or outline.
            label: Name of the series.
            variant: Index of the variant whose legend entry toggles it, if any.
            texts: Text shown at each marker; the position on the axes if empty.
        """
        attributes = {"class": "series", "data-label": label}
        if variant is not None:
            attributes["data-variant"] = str(variant)
        if texts:
            attributes["data-texts"] = "\n".join(texts)
        name = f"series-{len(self._series)}"
        artist.set_gid(name)
        self._series[name] = attributes

    def finished(
        self, name: str, title: str, description: str, *, variant: int | None = None, legend: Sequence[int] = ()
    ) -> Chart:
        """Returns the finished chart.

        Args:
            name: Name of the chart, unique in the report.
            title: Title above the chart.
            description: Alternative text for screen readers.
            variant: Index of the variant that it shows alone, if any.
            legend: Indices of the variants whose lines, labeled with their names, it shows together. The PNG gets
                matplotlib's legend, the page a clickable one.
        """
        slug = plain(name)
        png, svg = io.BytesIO(), io.StringIO()
        with warnings.catch_warnings():
            # For names in scripts that the font doesn't have.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            if legend:
                lines = self.axes.lines
                labels = [str(line.get_label()) for line in lines]
                key = self.figure.legend(lines, labels, loc="outside right upper", frameon=False, fontsize=8)
            self.figure.savefig(png, format="png", dpi=160, facecolor="white")
            if legend:
                key.remove()
            else:
                self.figure.set_layout_engine("none")  # it is laid out already
            self.figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        width = round(110 * self.figure.get_figwidth())
        root = {"role": "img", "aria-label": description, "data-value": self.value_axis, **self._scales()}
        drawn = for_page(svg.getvalue(), slug, root, self._series, _IN_PAGE)
        return Chart(slug, title, drawn, png.getvalue(), width, variant, tuple(legend))

    def _scales(self) -> dict[str, str]:
        """Returns for each axis its ends in the SVG, the values there, its scale and its label."""
        axes, (width, height) = self.axes, self.figure.get_size_inches() * _POINTS
        # In relative coordinates, because the resolution differs between PNG and SVG.
        (left, bottom), (right, top) = axes.get_position().get_points()
        ends = {"x": (left * width, right * width), "y": ((1 - bottom) * height, (1 - top) * height)}
        scales = {}
        for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
            numbers = " ".join(f"{value:.6g}" for value in (*ends[name], *axis.get_view_interval()))
            scales[f"data-{name}"] = f"{numbers} {axis.get_scale()}"
            scales[f"data-{name}-label"] = axis.get_label_text()
        return scales


def check_can_draw() -> None:
    """Checks that matplotlib is installed.

    Raises:
        SettingError: If it isn't installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingError("a report needs matplotlib: pip install matplotlib")


@contextmanager
def drawing(width: float = _SIZE[0], height: float = _SIZE[1], *, value_axis: str = "y") -> Iterator[Drawing]:
    """Yields an empty figure in the report's style, which applies within the context.

    Args:
        width: Width in inches.
        height: Height in inches.
        value_axis: Axis of the values, ``x`` or ``y``.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        **PLAIN_TEXT,
        "svg.fonttype": "none",  # text stays text
        "path.simplify": False,  # the page's script reads the points of a line
        "font.family": ["DejaVu Sans"],
        "font.size": 9,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.color": INK,
        "lines.linewidth": 1.6,
        "svg.hashsalt": "lightning_reg",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield Drawing(figure, figure.add_subplot(), value_axis)


def plain(name: str) -> str:
    """Returns a name that is a valid file name on every system.

    Args:
        name: Name in any script, of which only Latin letters and digits are kept.

    >>> plain("L1, proximal (0.1)")
    'l1-proximal-0-1'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "figure"


def file_names(variants: Sequence[str]) -> dict[str, str]:
    """Returns a unique file name for each variant.

    Args:
        variants: Names of the variants; a number is appended to all but the first of those with the same file name.

    >>> file_names(["L1 0.1", "L1-0.1"])
    {'L1 0.1': 'l1-0-1', 'L1-0.1': 'l1-0-1-2'}
    """
    names: dict[str, str] = {}
    for variant in variants:
        name, number = plain(variant), 2
        while name in names.values():
            name, number = f"{plain(variant)}-{number}", number + 1
        names[variant] = name
    return names


def line_style(variant: int) -> tuple[str, str, str]:
    """Returns the line style of a variant: color, dashes, and the color's name in the page.

    >>> line_style(0), line_style(9)
    (('#0072b2', 'solid', 'var(--color-0)'), ('#d55e00', 'dashed', 'var(--color-1)'))
    """
    color = _OF_VARIANTS[variant % len(_OF_VARIANTS)]
    return color, _DASHES[variant // len(_OF_VARIANTS) % len(_DASHES)], _IN_PAGE[color]


def shade(index: int, count: int) -> tuple[float, float, float]:
    """Returns one of a series of colors from blue to orange, for layers for example.

    Args:
        index: Position in the series, from 0.
        count: Length of the series.
    """
    ends = (0.0, 0.45, 0.70), (0.84, 0.37, 0.0)
    t = index / max(count - 1, 1)
    red, green, blue = ((1 - t) * one + t * other for one, other in zip(*ends, strict=True))
    return red, green, blue


def name_line(axes: Axes, x: float, y: float, label: str, color: str, shift: float = 0) -> None:
    """Writes the name of a line next to its end.

    Args:
        axes: Axes of the line.
        x: Position of the line's end on the x axis.
        y: Position of the line's end on the y axis.
        label: Name of the line.
        color: Color of the line.
        shift: Vertical offset of the text in points.
    """
    axes.annotate(label, (x, y), xytext=(5, shift), textcoords="offset points", color=color, va="center", fontsize=8)


def thinned(values: Sequence[Value], lines: int) -> list[Value]:
    """Returns every k-th of many values, and the last, to keep the page small.

    Args:
        values: Values of one line.
        lines: Number of lines of the same kind in the page.

    >>> thinned(range(100), 150)
    [0, 3, 6, ..., 96, 99]
    """
    every = max(math.ceil(len(values) / max(_MOST_POINTS // max(lines, 1), _FEWEST_POINTS)), 1)
    return [value for index, value in enumerate(values) if index % every == 0 or index == len(values) - 1]


def label_of(metric: str) -> str:
    """Returns the axis label of a metric.

    Args:
        metric: Name of the metric, with or without the split.

    >>> label_of("test/accuracy")
    'test accuracy, %'
    """
    return readable(metric) + (", %" if is_accuracy(metric) else "")
