"""Figures of the gallery and of the cards, saved in a light and a dark version."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl  # noqa: TID253  # what it is for

__all__ = ["COLORS", "INK", "STYLE", "light_and_dark", "prepare", "quiet", "undisturbed", "written"]

# Line colors that are legible on white and on near black; everything else has the ink color, which is replaced.
COLORS = ["#3b82c4", "#e07b39", "#3a9d5d", "#a864c4", "#c9a227", "#d6577d", "#5f8f99", "#8c6d5a"]
INK, _LIGHT_INK, _DARK_INK = "#012345", "#24292f", "#d0d4da"
STYLE = {
    "axes.prop_cycle": mpl.cycler(color=COLORS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": "medium",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "figure.figsize": (7.2, 3.0),
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "patch.edgecolor": INK,
    "savefig.facecolor": "none",
    "svg.fonttype": "path",  # the same on every machine
    "svg.hashsalt": "lightning-reg",  # and in every build
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def prepare(_gallery_conf: dict[str, Any], _script: str) -> None:
    """Sets the same seed and style for every script, and suppresses Lightning's messages."""
    import torch

    mpl.rcdefaults()
    mpl.use("agg")
    mpl.rcParams.update(STYLE)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    quiet()


def quiet() -> None:
    """Suppresses Lightning's messages from now on."""
    import logging
    import warnings

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message="`isinstance.treespec, LeafSpec.` is deprecated")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Suppresses Lightning's messages within a context, and restores random state, warnings and log levels after it."""
    import logging
    import warnings

    import torch

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        quiet()
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def light_and_dark(_block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Saves each open figure as SVG, once with dark ink and once with light ink, one of which furo shows.

    Returns:
        reStructuredText that shows the figures of one block of a script.
    """
    import matplotlib.pyplot as plt

    shown = []
    for number, path in zip(plt.get_fignums(), block_vars["image_path_iterator"], strict=False):
        figure = plt.figure(number)
        light, dark = written(figure, Path(path))
        title = re.sub(r"\s+", " ", "; ".join(filter(None, (axes.get_title() for axes in figure.axes)))) or "figure"
        for file, where in ((light, "only-light"), (dark, "only-dark")):
            source = os.path.relpath(file, gallery_conf["src_dir"]).replace(os.sep, "/")
            shown.append(f".. image:: /{source}\n   :alt: {title}\n   :class: {where} figure\n")
    plt.close("all")
    return "\n".join(shown)


def written(figure: Any, path: Path) -> tuple[Path, Path]:
    """Saves a figure as SVG, with dark ink and with light ink.

    Args:
        figure: Figure in the style of :data:`STYLE`.
        path: Path of the files, whose suffix is replaced.

    Returns:
        The files for light and for dark pages.
    """
    light = path.with_suffix(".svg")
    dark = light.with_name(f"{light.stem}_dark.svg")
    figure.savefig(light, format="svg", metadata={"Date": None})
    text = light.read_text(encoding="utf-8")
    light.write_text(text.replace(INK, _LIGHT_INK), encoding="utf-8")
    dark.write_text(text.replace(INK, _DARK_INK), encoding="utf-8")
    return light, dark
