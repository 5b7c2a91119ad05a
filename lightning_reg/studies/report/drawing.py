"""Figures as SVG that takes its colours from the page, light or dark, and as PNG."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_reg.attach.metric_names import is_accuracy
from lightning_reg.settings import SettingError
from lightning_reg.studies.report.words import readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "Picture",
    "factor_of",
    "figure",
    "file_names",
    "finished",
    "label_of",
    "name_line",
    "plain",
    "shade",
    "write_pictures",
]

# Told apart by colour-blind people, too. The page's style sheet has lighter ones of them for the dark.
INK, GRID, GREY = "#2b2b2c", "#dcdcdd", "#8a8a8b"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#008a66"
_IN_PAGE = {
    INK: "currentColor",
    GRID: "var(--grid)",
    GREY: "var(--grey)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
}
_SIZE = (3.5, 2.6)  # inches; a page shows two or three side by side, a phone one


@dataclass(frozen=True)
class Picture:
    """A figure that is ready.

    Attributes:
        name: Of its file, without an ending.
        title: Above it.
        description: What it shows, for those who don't see it.
        svg: An element for a page.
        png: A file's content.
        width: In pixels, at which its text has the page's size.
    """

    name: str
    title: str
    description: str
    svg: str
    png: bytes
    width: int


@contextmanager
def figure(width: float = _SIZE[0], height: float = _SIZE[1]) -> Iterator[tuple["Figure", "Axes"]]:
    """Yields an empty figure with axes in the report's style.

    Args:
        width: In inches.
        height: In inches.

    Raises:
        SettingError: If there is no matplotlib.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingError("a report needs matplotlib: pip install 'lightning-reg[study]'") from error
    style: Any = {
        "svg.fonttype": "none",  # text stays text
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
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn, drawn.add_subplot()


def finished(drawn: "Figure", name: str, title: str, description: str) -> Picture:
    """Returns the picture that a figure has become.

    Args:
        drawn: Within :func:`figure`.
        name: Unique in the report.
        title: Above it.
        description: For those who don't see it.
    """
    slug = plain(name)
    png, svg = io.BytesIO(), io.StringIO()
    drawn.savefig(png, format="png", dpi=160, facecolor="white")
    drawn.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Picture(
        slug,
        title,
        description,
        _for_page(svg.getvalue(), slug, description),
        png.getvalue(),
        round(110 * drawn.get_figwidth()),
    )


def _for_page(svg: str, slug: str, description: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # Several of them stand in one page, where names must be unique.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{slug}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{slug}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{slug}-\1)", svg)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]+"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]+"', r"<svg \1", svg, count=1)
    svg = svg.replace("'DejaVu Sans'", "system-ui, sans-serif").replace("DejaVu Sans", "system-ui, sans-serif")
    for colour, variable in _IN_PAGE.items():
        svg = svg.replace(colour, variable)
    described = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub("<svg ", f'<svg role="img" aria-label="{described}" ', svg, count=1).strip()


def plain(name: str) -> str:
    """Returns a name that can be a file's on every system.

    >>> plain("L1, proximal (0.1)")
    'l1-proximal-0-1'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "figure"


def file_names(variants: Sequence[str]) -> dict[str, str]:
    """Returns for each variant a name that can be a file's and differs from all others.

    Args:
        variants: Their names.

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


def shade(index: int, count: int) -> tuple[float, float, float]:
    """Returns one of a series of colours from blue to orange, for layers or the like.

    Args:
        index: From 0.
        count: How many there are.
    """
    ends = (0.0, 0.45, 0.70), (0.84, 0.37, 0.0)
    t = index / max(count - 1, 1)
    first, last = ends
    return (
        first[0] + t * (last[0] - first[0]),
        first[1] + t * (last[1] - first[1]),
        first[2] + t * (last[2] - first[2]),
    )


def write_pictures(pictures: list[Picture], folder: Path) -> None:
    """Writes the PNGs.

    Args:
        pictures: With names that differ.
        folder: That is made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for each in pictures:
        (folder / f"{each.name}.png").write_bytes(each.png)


def name_line(axes: "Axes", x: float, y: float, label: str, colour: str, shift: float = 0) -> None:
    """Writes a line's name where it ends.

    Args:
        axes: That the line is in.
        x: Of its end.
        y: Of its end.
        label: The name.
        colour: That of the line.
        shift: By how many points it stands higher.
    """
    axes.annotate(label, (x, y), xytext=(5, shift), textcoords="offset points", color=colour, va="center", fontsize=8)


def factor_of(metric: str) -> float:
    """Returns what values of a metric are multiplied by where they are shown: accuracies are in percent.

    Args:
        metric: Its name.
    """
    return 100 if is_accuracy(metric) else 1


def label_of(metric: str) -> str:
    """Returns what stands at an axis of a metric.

    Args:
        metric: Its name.

    >>> label_of("test/accuracy")
    'test accuracy, %'
    """
    return readable(metric) + (", %" if is_accuracy(metric) else "")
