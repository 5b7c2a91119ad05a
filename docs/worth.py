"""Costs of techniques per step and their gains in studies, from the measured results, for the pages of techniques."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import figures
from matplotlib.figure import Figure  # noqa: TID253  what it is for
from matplotlib.lines import Line2D  # noqa: TID253

from lightning_reg.core.technique import Technique

__all__ = ["Gain", "chart", "costs", "facts", "gains", "rows", "table"]

_DOCS = Path(__file__).parent
_WORKLOADS = ("mlp", "cnn")


@dataclass(frozen=True)
class _Study:
    """A table of docs/studies.md: its data and network, and the callbacks of its rows.

    Attributes:
        heading: Heading of the section, optionally followed by a slash and the bold words before one of its tables.
        on: Description of data and network.
        workload: Name of the benchmark's most similar network.
        column: Title of the column with the difference, the variant minus what it is compared with.
        callbacks: Class and setting of the callback in which a variant differs, by variant.
        is_left_out: Whether variants remove a technique instead of adding it.
        unit: Unit of the difference.
    """

    heading: str
    on: str
    workload: str
    column: str
    callbacks: Mapping[str, tuple[str, str]]
    is_left_out: bool = False
    unit: str = "points"


_SIGNALS = "1,200 generated signals, an MLP"
_LEFT_OUT = {"without dropout": ("InsertDropout", ""), "without clipping": ("GradientClipping", "")}
_STUDIES = (
    _Study(
        "First aid on digits",
        "300 digits, an MLP",
        "mlp",
        "difference from nothing, points",
        {
            "Mixup": ("BatchMixing", "Mixup"),
            "CutMix": ("BatchMixing", "CutMix"),
            "label smoothing": ("LabelSmoothing", ""),
            "SAM": ("SharpnessAwareMinimization", ""),
            "averaged weights": ("ExponentialMovingAverage", ""),
            "dropout 0.5": ("InsertDropout", ""),
        },
    ),
    _Study(
        "The ablation on digits",
        "300 digits, a CNN that has four others",
        "cnn",
        "difference, points",
        _LEFT_OUT,
        is_left_out=True,
    ),
    _Study(
        "The ablation on CIFAR-10",
        "5,000 images of CIFAR-10, a CNN that has four others",
        "cnn",
        "difference, points",
        _LEFT_OUT,
        is_left_out=True,
    ),
    _Study(
        "Dropout and weight decay on diabetes",
        "442 patients, an MLP",
        "mlp",
        "difference",
        {"dropout": ("InsertDropout", "")},
        unit="of R²",
    ),
    _Study(
        "Techniques on small data/Rows of a table",
        "199 tumors, an MLP",
        "mlp",
        "difference, points",
        {
            "Mixup": ("BatchMixing", "Mixup"),
            "RowCutMix": ("BatchMixing", "RowCutMix"),
            "RowCutout": ("BatchMixing", "RowCutout"),
            "RegMixup": ("RegMixup", ""),
            "label smoothing": ("LabelSmoothing", ""),
        },
    ),
    _Study(
        "Techniques on small data/Hidden states",
        _SIGNALS,
        "mlp",
        "difference, points",
        {
            "Mixup of inputs": ("BatchMixing", "Mixup"),
            "ManifoldMixup": ("ManifoldMixup", ""),
            "stochastic depth": ("InsertStochasticDepth", ""),
            "LayerDrop": ("InsertLayerDrop", ""),
        },
    ),
    _Study(
        "Techniques on small data/Terms of the loss",
        _SIGNALS,
        "mlp",
        "difference, points",
        {
            "R-Drop": ("RDrop", ""),
            "input gradient": ("InputGradientPenalty", ""),
            "Jacobian": ("JacobianPenalty", ""),
            "adversarial": ("AdversarialTraining", ""),
            "label smoothing": ("LabelSmoothing", ""),
            "MaxSup": ("LogitPenalty", ""),
            "decorrelation": ("DecorrelationPenalty", ""),
        },
    ),
    _Study(
        "Techniques on small data/Gradients",
        _SIGNALS,
        "mlp",
        "difference, points",
        {"without SAM": ("SharpnessAwareMinimization", "")},
        is_left_out=True,
    ),
    _Study(
        "Techniques on small data/Weights",
        _SIGNALS,
        "mlp",
        "difference, points",
        {
            "three snapshots, equal": ("SnapshotEnsemble", "growth=1.0"),
            "three snapshots, doubling": ("SnapshotEnsemble", "growth=2.0"),
            "latest weights": ("LatestWeightAverage", ""),
            "moving average": ("ExponentialMovingAverage", ""),
            "cautious decay": ("CautiousWeightDecay", ""),
        },
    ),
)
# The columns of benchmarks.flatness: description of data and network, and the benchmark's most similar network.
_FLATNESS = {
    "digits": ("300 digits, an MLP with BatchNorm", "mlp"),
    "CIFAR-10": ("5,000 images of CIFAR-10, a CNN", "cnn"),
}


@dataclass(frozen=True)
class Gain:
    """The gain by a technique in one study.

    Attributes:
        technique: Name of the class.
        setting: Setting of the technique, to distinguish several rows of one class.
        value: Difference from the same run without the technique; positive is better.
        error: Standard error of the difference.
        unit: Unit of both.
        on: Description of data and network.
        workload: Name of the benchmark's most similar network.
        link: Link to the study.
    """

    technique: str
    setting: str
    value: float
    error: float
    unit: str
    on: str
    workload: str
    link: str

    def __str__(self) -> str:
        """Returns the value with its sign, error and unit, joined by non-breaking spaces."""
        digits = 3 if self.unit == "of R²" else 2 if self.error < 1 else 1
        sign = "+" if self.value > 0 else "−" if self.value < 0 else ""
        text = f"{sign}{abs(self.value):.{digits}f} ± {self.error:.{digits}f} {self.unit}"
        return text.replace(" ", "\N{NO-BREAK SPACE}")


@cache
def gains() -> Sequence[Gain]:
    """Returns all gains by callbacks that our studies have measured.

    Raises:
        KeyError: If a table of the studies no longer has an expected row or column.
    """
    return [gain for study in _STUDIES for gain in _of_study(study)] + list(_of_flatness())


def _of_study(study: _Study) -> list[Gain]:
    text = (_DOCS / "studies.md").read_text(encoding="utf-8")
    heading, _, lead = study.heading.partition("/")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    if lead:
        section = section.partition(f"\n**{lead}**")[2].partition("\n**")[0]
    titles, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| ")
    ]
    by_name = {row[0]: dict(zip(titles, row, strict=True)) for row in rows}
    link = "studies.md#" + re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-"))
    found = []
    for variant, (name, setting) in study.callbacks.items():
        value, error = _number(by_name[variant][study.column])
        sign = -1 if study.is_left_out else 1
        found.append(Gain(name, setting, sign * value, error, study.unit, study.on, study.workload, link))
    return found


def _of_flatness() -> list[Gain]:
    measured = _benchmark("accuracy", "flatness", "")
    bare = dict(zip(measured["columns"], measured["rows"][0], strict=True))
    link = "benchmarks.md#what-techniques-are-worth"
    found = []
    for row in measured["rows"][1:]:
        call = re.fullmatch(r"`(\w+)\((.*)\)`", row[0])
        for title, (on, workload) in _FLATNESS.items() if call else ():
            value, error = _number(row[measured["columns"].index(title)])
            base, base_error = _number(bare[title])
            of_both = (error**2 + base_error**2) ** 0.5  # the two aren't paired by seeds in that table
            found.append(Gain(call[1], call[2], value - base, of_both, "points", on, workload, link))
    return found


def _number(cell: str) -> tuple[float, float]:
    value, _, error = cell.removesuffix(" %").replace("−", "-").partition(" ± ")
    return float(value), float(error)


@cache
def costs() -> Mapping[tuple[str, str], Mapping[str, float]]:
    """Returns step times relative to a bare step, by a technique's class and setting, and by network."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for workload in _WORKLOADS:
        measured = _benchmark("cpu", "overhead", workload)
        for name, ratio, *_ in measured["rows"]:
            row = re.fullmatch(r"([A-Z]\w+)(?:\((.*)\)|, (.*))?", name)
            if row:
                found.setdefault((row[1], row[2] or row[3] or ""), {})[workload] = float(ratio)
    return found


def _benchmark(file: str, name: str, title: str) -> dict:
    data = json.loads((_DOCS / "benchmarks" / f"{file}.json").read_text(encoding="utf-8"))
    return next(table for table in data["benchmarks"][name] if table["title"].endswith(title))


def facts(kind: type[Technique]) -> list[str]:
    """Returns list items for a technique's page as Markdown: its cost, and a note if its gain hasn't been measured.

    Args:
        kind: Class of the technique.
    """
    cost = _cost_of(kind.__name__)
    lines = [f"- **A step takes**: {cost} ([measured](../benchmarks.md) on a CPU)."] if cost else []
    if not _of(kind) and not kind.only_watches:
        lines.append("- **What it brings**: no [study](../studies.md) of ours has measured it yet.")
    return lines


def rows(kind: type[Technique]) -> list[str]:
    """Returns a table of a technique's gains and costs as Markdown; empty if no study has measured it.

    Args:
        kind: Class of the technique.
    """
    lines = [f"| [{gain.on}](../{gain.link}){_told(gain)} | {_cost_there(gain)} | {gain} |" for gain in _of(kind)]
    head = ["| cost against gain: on | a step takes | what it brought |", "|---|---|---|"]
    return ["\n".join([*head, *lines])] if lines else []


def _of(kind: type[Technique]) -> list[Gain]:
    return [gain for gain in gains() if gain.technique == kind.__name__]


def _told(gain: Gain) -> str:
    if not gain.setting:
        return ""
    return f", {gain.setting}" if gain.setting.isidentifier() else f", `{gain.setting}`"


def _cost_there(gain: Gain) -> str:
    cost = next((cost for other, cost in _compared() if other is gain), None)
    return "" if cost is None else _times(cost)


def _cost_of(name: str) -> str:
    of_settings = {setting: ratios for (owner, setting), ratios in costs().items() if owner == name}
    told = []
    for setting, ratios in of_settings.items():
        by_network = ", ".join(f"{_times(ratio)} ({workload.upper()})" for workload, ratio in ratios.items())
        told.append(f"`{setting}` {by_network}" if setting and len(of_settings) > 1 else by_network)
    return "; ".join(told)


def _times(ratio: float) -> str:
    return f"{ratio:.2f}\N{NO-BREAK SPACE}×"


def _compared() -> list[tuple[Gain, float]]:
    """Returns gains with the cost of a step on the most similar network, if both are known."""
    found = []
    for gain in gains():
        # The benchmark's rows with the settings that studies use: SAM as in the study, clipping by norm.
        settings = ("adaptive",) if "adaptive=True" in gain.setting else ("", "norm")
        for setting in settings:
            ratio = costs().get((gain.technique, setting), {}).get(gain.workload)
            if ratio is not None:
                found.append((gain, ratio))
    return found


def chart() -> Figure:
    """Draws the cost of a step with each technique, and next to it the gain."""
    measured: dict[str, list[tuple[Gain, float]]] = {}
    compared = [(gain, cost) for gain, cost in _compared() if gain.unit == "points"]
    for gain, cost in compared:
        name = f"{gain.technique}, adaptive" if "adaptive=True" in gain.setting else gain.technique
        measured.setdefault(name, []).append((gain, cost))
    names = sorted(measured, key=lambda name: -max(cost for _, cost in measured[name]))
    grounds = list(dict.fromkeys(gain.on for gain, _ in compared))
    figure = Figure(figsize=(4.8, 0.55 * len(names) + 2.0), layout="constrained")  # text is legible on a phone, too
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.3))
    for place, name in enumerate(names):
        left.text(0.02, place + 0.42, name, transform=left.get_yaxis_transform(), va="top", in_layout=False)
        for gain, cost in measured[name]:
            color = figures.COLORS[grounds.index(gain.on)]
            y = place + 0.1 - 0.5 * grounds.index(gain.on) / len(grounds)
            left.plot([1, cost], [y, y], color=color, linewidth=2)
            left.plot(cost, y, "o", color=color, markersize=4)
            right.errorbar(gain.value, y, xerr=gain.error, fmt="o", markersize=4, linewidth=1.2, color=color)
    right.axvline(0, color=figures.INK, alpha=0.4, linewidth=0.8)
    for axes in (left, right):
        for border in range(1, len(names)):
            axes.axhline(border - 0.5, color=figures.INK, alpha=0.15, linewidth=0.6)
    left.set(yticks=[], xlabel="× a bare step", title="cost", xlim=(0.9, None))
    right.set(xlabel="points of test accuracy", title="gain", ylim=(-0.5, len(names) - 0.5))
    right.tick_params(left=False)
    right.set_xscale("symlog", linthresh=1, linscale=0.8)
    right.set_xticks([-10, -1, 0, 1, 10], ["−10", "−1", "0", "+1", "+10"])
    right.minorticks_off()
    colors = figures.COLORS[: len(grounds)]
    dots = [Line2D([], [], marker="o", linestyle="", color=color) for color in colors]
    figure.legend(dots, grounds, loc="outside lower left", fontsize="small")
    return figure


def table() -> str:
    """Returns all measured gains, including those in the chart, as a table in Markdown."""
    rows = ["| callback | on | a step takes | what it brought |", "|---|---|---|---|"]
    rows += [
        f"| [`{gain.technique}`]({gain.technique}.md){_told(gain)} | [{gain.on}](../{gain.link}) | {_cost_there(gain)} "
        f"| {gain} |"
        for gain in sorted(gains(), key=lambda gain: gain.technique)
    ]
    return "\n".join(rows)
