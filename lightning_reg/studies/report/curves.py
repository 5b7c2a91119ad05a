"""Learning curves of training and validation: one chart of all variants, and one chart per variant."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from lightning_reg.studies.outcome import Outcome
from lightning_reg.studies.report.figures import (
    BLUE,
    GRAY,
    ORANGE,
    Chart,
    Drawing,
    drawing,
    file_names,
    label_of,
    line_style,
    name_line,
    thinned,
)
from lightning_reg.studies.report.numbers import factor_of

__all__ = ["curve_names", "curves"]

_SPLITS = {"train": BLUE, "validation": ORANGE}
Curve = list[tuple[float, float, float]]


def curve_names(outcome: Outcome) -> list[str]:
    """Returns the metrics whose curves are shown: the loss, and the study's metric.

    Args:
        outcome: Outcome of a study, possibly incomplete.
    """
    return list(dict.fromkeys(["loss", outcome.study.metric.partition("/")[2]]))


def curves(outcome: Outcome, name: str) -> Iterator[Chart]:
    """Yields a chart of all variants' validation curves, and one chart per variant, all to the same scale.

    Args:
        outcome: Outcome of a study, possibly incomplete.
        name: Name of the metric, without a split.
    """
    variants, found = list(outcome.study.variants), {}
    for variant in variants:
        measured = [result.curves for result in outcome.results if result.variant == variant]
        means = {split: _mean_curve([run.get(f"{split}/{name}", ()) for run in measured]) for split in _SPLITS}
        lines = {split: thinned(line, 4 * len(variants)) for split, line in means.items()}  # two, and their bands
        if any(lines.values()):
            found[variant] = lines
    limits = _limits([value for lines in found.values() for line in lines.values() for _, value, _ in line])
    end = max((line[-1][0] for lines in found.values() for line in lines.values() if line), default=0.0)
    together = {variants.index(variant): lines["validation"] for variant, lines in found.items() if lines["validation"]}
    if len(together) > 1:
        yield _together(outcome, name, together, limits, end)
    files = file_names(variants)
    for variant, lines in found.items():
        with drawing() as drawn:
            _draw(drawn, lines, factor_of(name), factor_of(name) * (limits[1] - limits[0]))
            _set_axes(drawn, name, limits, end)
            ends = [f"{split} ends at {factor_of(name) * line[-1][1]:.3g}" for split, line in lines.items() if line]
            told = f"{name} of {variant} against epochs: {', '.join(ends)}"
            yield drawn.finished(f"curve {name} {files[variant]}", variant, told, variant=variants.index(variant))


def _together(outcome: Outcome, name: str, lines: dict[int, Curve], limits: tuple[float, float], end: float) -> Chart:
    with drawing(4.8, 3.0) as drawn:
        for index, line in lines.items():
            variant, (color, dashes, _) = outcome.study.variants[index], line_style(index)
            x, mean = [point[0] for point in line], [factor_of(name) * point[1] for point in line]
            (artist,) = drawn.axes.plot(x, mean, color=color, linestyle=dashes, label=variant)
            drawn.series(artist, f"{variant}, validation", variant=index)
        _set_axes(drawn, name, limits, end)
        told = f"{name} of all variants on the validation part against epochs"
        return drawn.finished(f"curves {name}", "Validation, all variants", told, legend=list(lines))


def _draw(drawn: Drawing, lines: dict[str, Curve], factor: float, height: float) -> None:
    for split, line in lines.items():
        if line:
            x, mean, spread = (np.array(values) for values in zip(*line, strict=True))
            (artist,) = drawn.axes.plot(x, factor * mean, color=_SPLITS[split])
            drawn.series(artist, split)
            low, high = factor * (mean - spread), factor * (mean + spread)
            drawn.axes.fill_between(x, low, high, color=_SPLITS[split], alpha=0.25, linewidth=0)
    ends = {split: (line[-1][0], factor * line[-1][1]) for split, line in lines.items() if line}
    _name_ends(drawn, ends, height)
    if all(lines.values()):
        train, validation = ({x: factor * value for x, value, _ in lines[split]} for split in _SPLITS)
        both = [x for x in train if x in validation]
        between = [train[x] for x in both], [validation[x] for x in both]
        drawn.axes.fill_between(both, *between, color=GRAY, alpha=0.2, linewidth=0)


def _set_axes(drawn: Drawing, name: str, limits: tuple[float, float], end: float) -> None:
    drawn.axes.set_ylim(factor_of(name) * limits[0], factor_of(name) * limits[1])
    drawn.axes.set_xlim(-0.02 * end, 1.02 * end or 1)
    drawn.axes.set_xlabel("epoch")
    drawn.axes.set_ylabel(label_of(name))


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> Curve:
    """Returns position, mean and standard deviation at the positions that at least half of the runs reached."""
    present = [{point[0]: point[1] for point in curve} for curve in curves if curve]
    positions = sorted({x for points in present for x in points})
    line = []
    for x in positions:
        values = [points[x] for points in present if x in points and math.isfinite(points[x])]
        if values and 2 * len(values) >= len(present):
            line.append((x, math.fsum(values) / len(values), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0))
    return line


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Returns common limits, without the highest 2 % if these are outliers, such as the loss of the first epoch."""
    if not values:
        return 0.0, 1.0
    low, most, high = np.min(values), np.quantile(values, 0.98), np.max(values)
    top = most if high > low + 1.5 * (most - low) else high
    margin = 0.05 * max(top - low, 1e-9)
    return float(low - margin), float(top + margin)


def _name_ends(drawn: Drawing, ends: dict[str, tuple[float, float]], height: float) -> None:
    """Labels lines at their ends, one above the other if these are close."""
    ranked = sorted(ends, key=lambda split: ends[split][1])
    near = len(ranked) > 1 and ends[ranked[-1]][1] - ends[ranked[0]][1] < 0.08 * height
    for rank, split in enumerate(ranked):
        name_line(drawn.axes, *ends[split], split, _SPLITS[split], (10 * rank - 5) if near else 0)
