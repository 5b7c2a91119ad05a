"""Learning curves of training and validation, a picture a variant."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_reg.studies.outcome import Outcome
from lightning_reg.studies.report.drawing import (
    BLUE,
    GREY,
    ORANGE,
    Picture,
    factor_of,
    figure,
    file_names,
    finished,
    label_of,
    name_line,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["curve_names", "curves"]

_SPLITS = {"train": BLUE, "validation": ORANGE}
Curve = list[tuple[float, float, float]]


def curve_names(outcome: Outcome) -> list[str]:
    """Returns the metrics whose curves are shown.

    Args:
        outcome: With the results.
    """
    return list(dict.fromkeys(["loss", outcome.study.metric.partition("/")[2]]))


def curves(outcome: Outcome, name: str) -> Iterator[Picture]:
    """Yields a picture for each variant that has curves of a metric, all of one scale.

    Args:
        outcome: With the results.
        name: Of the metric, without a split.
    """
    found, files = {}, file_names(outcome.study.variants)
    for variant in outcome.study.variants:
        curves = [each.curves for each in outcome.results if each.variant == variant]
        lines = {split: _mean_curve([each.get(f"{split}/{name}", ()) for each in curves]) for split in _SPLITS}
        if any(lines.values()):
            found[variant] = lines
    limits = _limits([value for lines in found.values() for line in lines.values() for _, value, _ in line])
    for variant, lines in found.items():
        yield _curve(variant, f"curve {name} {files[variant]}", name, lines, limits)


def _curve(variant: str, file: str, name: str, lines: dict[str, Curve], limits: tuple[float, float]) -> Picture:
    factor = factor_of(name)
    with figure() as (drawn, axes):
        for split, line in lines.items():
            if not line:
                continue
            x, mean, spread = (np.array(each) for each in zip(*line, strict=True))
            axes.plot(x, factor * mean, color=_SPLITS[split])
            low, high = factor * (mean - spread), factor * (mean + spread)
            axes.fill_between(x, low, high, color=_SPLITS[split], alpha=0.25, linewidth=0)
        ends = {split: (line[-1][0], factor * line[-1][1]) for split, line in lines.items() if line}
        _name_ends(axes, ends, factor * (limits[1] - limits[0]))
        if all(lines.values()):
            train, validation = ({x: factor * value for x, value, _ in lines[split]} for split in _SPLITS)
            both = [x for x in train if x in validation]
            axes.fill_between(
                both, [train[x] for x in both], [validation[x] for x in both], color=GREY, alpha=0.2, linewidth=0
            )
        axes.set_ylim(factor * limits[0], factor * limits[1])
        axes.set_xlabel("epoch")
        axes.set_ylabel(label_of(name))
        told = ", ".join(f"{split} ends at {y:.3g}" for split, (_, y) in ends.items())
        axes.margins(x=0.02)
        return finished(drawn, file, variant, f"{name} of {variant} against epochs: {told}")


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> Curve:
    """Returns position, mean and standard deviation for as long as at least half of the runs went on."""
    present = [{each[0]: each[1] for each in curve} for curve in curves if curve]
    positions = sorted({x for each in present for x in each})
    line = []
    for x in positions:
        values = [each[x] for each in present if x in each and math.isfinite(each[x])]
        if values and 2 * len(values) >= len(present):
            line.append((x, math.fsum(values) / len(values), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0))
    return line


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Returns common limits, without the highest 2 % where these are far out: a first epoch's loss."""
    if not values:
        return 0.0, 1.0
    low, most, high = np.min(values), np.quantile(values, 0.98), np.max(values)
    top = most if high > low + 1.5 * (most - low) else high
    margin = 0.05 * max(top - low, 1e-9)
    return float(low - margin), float(top + margin)


def _name_ends(axes: "Axes", ends: dict[str, tuple[float, float]], height: float) -> None:
    """Names lines where they end, one above the other where they end near one another."""
    heights = sorted(y for _, y in ends.values())
    near = len(heights) > 1 and heights[-1] - heights[0] < 0.08 * height
    for split, (x, y) in ends.items():
        shift = (5 if y == heights[-1] else -5) if near else 0
        name_line(axes, x, y, split, _SPLITS[split], shift)
