"""Targets for speed and memory, and whether the results of a run meet them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.tables import Table

__all__ = ["TARGETS", "Target", "judged"]

Benchmarks = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Target:
    """A bound on one result, or on each of several.

    Attributes:
        what: Description of the target.
        benchmark: Name of the benchmark.
        title: Prefix of the table's title.
        rows: Regular expression for the full names of the rows.
        column: Prefix of the column's name; ``#`` and an index select one of several such columns.
        bound: Upper bound of the result, or lower bound if ``at_least``.
        at_least: Whether the bound is a lower one.
        other: Name of a row whose result the others are divided by; not divided if empty.
    """

    what: str
    benchmark: str
    title: str
    rows: str
    column: str
    bound: float
    at_least: bool = False
    other: str = ""


def _step(what: str, workload: str, rows: str, bound: float, column: str = "×", other: str = "") -> Target:
    title = f"What techniques add to a step: {workload}"
    return Target(f"{what}, {workload}", "overhead", title, rows, column, bound, other=other)


def _bandwidth(what: str, rows: str) -> Target:
    return Target(f"{what} at 10^7 weights, % of copying", "scaling", _BY_WEIGHTS, rows, "of the limit#2", 50, True)


_BY_WEIGHTS = "Cost by the number of weights"
_DROPOUT = "Dropout by the number of units"
_BASIC = "An epoch of 50,000 color images of 32×32, augmented as basic"
_ADVANCED = "An epoch of 50,000 color images of 32×32, augmented as advanced"
_PHOTOGRAPHS = "An epoch of 2,000 color images of 224×224, augmented as advanced"
# Our techniques at their defaults, without the indented alternatives and without monitors at every step.
_EACH = r"(?!\s|SharpnessAware|fourteen|.*every step).*"
_EMA, _SAM = "ExponentialMovingAverage", "SharpnessAwareMinimization"

TARGETS = (
    _step("every callback but SAM", "cnn", _EACH, 1.02),
    _step("fourteen of them together", "cnn", "fourteen.*", 1.05),
    _step("SAM", "cnn", _SAM, 2.05),
    _step("SAM", "mlp", _SAM, 2.05),
    _step("SAM by half of the samples", "cnn", rf"{_SAM}\(fraction=0.5\)", 1.65),
    _step("SAM by half of the samples", "mlp", rf"{_SAM}\(fraction=0.5\)", 1.65),
    _step("orthogonality by eight random vectors", "mlp", r"OrthogonalPenalty\(probes=8\)", 1.3),
    _step("noise of two values", "mlp", r"GradientNoise\(rademacher\)", 1.2),
    _step("hidden layers mixed", "mlp", "ManifoldMixup", 1.1),
    _step("logits penalized", "mlp", "LogitPenalty", 1.03),
    _step("elastic net", "mlp", "ElasticNetPenalty", 1.12),
    _step("moving average", "mlp", _EMA, 1.08),
    _step("moving average", "cnn", _EMA, 1.02),
    _step("moving average, what it adds beside timm's", "mlp", _EMA, 1.0, "adds", "  timm's ModelEmaV3"),
    _step(
        "clipping and its monitor, what they add beside clip_grad_norm_",
        "mlp",
        "  with GradientMonitor at every step",
        1.1,
        "adds",
        "  torch's clip_grad_norm_",
    ),
    _step(
        "adaptive clipping, what it adds beside timm's",
        "mlp",
        r"GradientClipping\(adaptive\)",
        0.5,
        "adds",
        "  timm's adaptive_clip_grad",
    ),
    _step("activations watched at every step", "cnn", "ActivationStats, every step", 1.12),
    _step("the same with histograms", "cnn", "  with histograms", 1.3),
    _step("dropout inserted", "cnn", "InsertDropout", 1.12),
    _step("blocks and channels dropped", "cnn", r"InsertDropBlock|InsertDropout\(spatial\)", 1.03),
    _step("weights dropped", "cnn", "InsertDropConnect", 1.02),
    _step("weights dropped", "mlp", "InsertDropConnect", 1.4),
    Target("dropout of 10^6 units and more, beside torch's", "layers", _DROPOUT, r"\d+,\d+,\d+", "ours", 0.3),
    Target("dropout of any number of units, beside torch's", "layers", _DROPOUT, ".*", "ours", 1.0),
    Target("all monitors at their defaults, mlp", "monitors", "Monitors at their defaults: mlp", "all.*", "×", 1.03),
    Target("all monitors at their defaults, cnn", "monitors", "Monitors at their defaults: cnn", "all.*", "×", 1.03),
    Target("our MLP beside a bare module", "models", "A step of a model", ".*logs the same", "MLP / this", 1.03),
    Target("train.py to the first step, beside bare imports", "startup", "Until", "train.py.*", "×", 1.5),
    Target("import lightning_reg, beside lightning", "startup", "Until", "import lightning, lightning_reg", "×", 1.1),
    Target("memory of a moving average, copies", "memory", "Memory", _EMA, "held", 1.0),
    Target("memory of SAM at its peak, copies", "memory", "Memory", _SAM, "at the peak", 1.0),
    Target("memory of early stopping, copies", "memory", "Memory", "BestWeightsEarlyStopping", "held", 1.0),
    Target("logging every weight, beside add_histogram", "inspection", "Logging", "WeightDistribution", "×", 0.4),
    Target("Mixup beside torchvision's", "mixing", "Mixup of", "  torchvision's.*", "Mixup / this", 0.85),
    Target("Mixup beside timm's", "mixing", "Mixup of", "  timm's.*", "Mixup / this", 0.85),
    Target("CutMix beside torchvision's", "mixing", "CutMix of", "  torchvision's.*", "CutMix / this", 0.85),
    Target("CutMix beside timm's", "mixing", "CutMix of", "  timm's.*", "CutMix / this", 0.85),
    Target("basic augmentation beside torchvision", "data_loading", _BASIC, "torchvision.*", "ours faster", 10, True),
    Target(
        "advanced augmentation beside torchvision", "data_loading", _ADVANCED, "torchvision.*", "ours faster", 10, True
    ),
    Target("the same, photographs", "data_loading", _PHOTOGRAPHS, "torchvision.*", "ours faster", 3, True),
    Target("waiting for data, basic, %", "data_loading", "What part", "basic", "waiting, %", 5),
    Target("3,000 small tensors, beside foreach calls alone", "small", "What techniques add", ".*", "ratio", 2),
    _bandwidth("elastic net", "elastic net.*"),
    _bandwidth("clipping by norm", "clipping by norm"),
    _bandwidth("moving average", "moving.*"),
)


def judged(benchmarks: Benchmarks) -> Table:
    """Returns a table of the targets, the results, and whether they are met.

    Args:
        benchmarks: Tables of a run, by benchmark.
    """
    table = Table("Targets", ["what", "wanted", "measured", ""])
    for target in TARGETS:
        sign = "≥" if target.at_least else "≤"
        figures = _figures(target, benchmarks)
        if not figures:
            table.add(
                target.what, f"{sign} {target.bound:g}", None, "can't be told" if target.other else "not measured"
            )
            continue
        worst_first = sorted(figures.items(), key=lambda item: item[1], reverse=not target.at_least)
        missed = [
            (row, value)
            for row, value in worst_first
            if (value < target.bound if target.at_least else value > target.bound)
        ]
        table.add(target.what, f"{sign} {target.bound:g}", _shown(worst_first), _verdict(target, missed, len(figures)))
    return table


def _shown(worst_first: list[tuple[str, float]]) -> str:
    values = [value for _, value in worst_first]
    return f"{values[0]:.3g}" if len(values) == 1 else f"{min(values):.3g} to {max(values):.3g}"


def _verdict(target: Target, missed: list[tuple[str, float]], count: int) -> str:
    if not missed:
        return "met"
    if count == 1:
        return f"**missed by {abs(missed[0][1] - target.bound):.2g}**"
    named = ", ".join(f"{row.strip()} {value:.3g}" for row, value in missed)
    return f"**missed by {len(missed)} of {count}**: {named}"


def _figures(target: Target, benchmarks: Benchmarks) -> dict[str, float]:
    found: dict[str, float] = {}
    for table in benchmarks.get(target.benchmark, ()):
        if not table["title"].startswith(target.title):
            continue
        column = _column(target.column, table["columns"])
        values = {str(row[0]): _number(row[column]) for row in table["rows"]} if column is not None else {}
        other = values.get(target.other)
        for row, value in values.items():
            if value is None or not re.fullmatch(target.rows, row):
                continue
            if not target.other:
                found[row] = value
            elif other and value > 0 and other > 0:  # otherwise the added time is below the noise
                found[row] = value / other
    return found


def _column(begins: str, columns: Sequence[str]) -> int | None:
    """Returns the index of a column by the prefix of its name; ``#`` and an index select one of several matches."""
    name, _, number = begins.partition("#")
    alike = [index for index, column in enumerate(columns) if index and column.startswith(name)]
    which = int(number or 0)
    return alike[which] if which < len(alike) else None


def _number(cell: Any) -> float | None:
    found = re.match(r"-?[\d.]+(e-?\d+)?", str(cell).replace(",", ""))
    return float(found[0]) if found else None
