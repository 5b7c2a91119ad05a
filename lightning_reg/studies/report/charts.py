"""Charts of a study, for whatever its runs have collected."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_reg.core.charts import make_logarithmic
from lightning_reg.studies.outcome import Axis, Outcome, collected
from lightning_reg.studies.report.curves import curve_names, curves
from lightning_reg.studies.report.decomposition import parts_of
from lightning_reg.studies.report.figures import (
    BLUE,
    GRAY,
    GREEN,
    INK,
    ORANGE,
    Chart,
    Drawing,
    drawing,
    file_names,
    label_of,
    name_line,
    shade,
    thinned,
)
from lightning_reg.studies.report.numbers import factor_of, number, readable
from lightning_reg.studies.statistics import Summary, mean_and_error, summaries

__all__ = ["Section", "sections"]

_OF_CURVES = (
    "Means over seeds, and their spread; the gap is shaded. The pointer shows values, a click on a name in the legend "
    "switches that variant off in all charts."
)
_OF_LAYERS = (
    "Of each layer through training, from the first in blue to the last in orange; every chart to its own scale."
)
_STATISTICS = {"mean": "mean", "std": "standard deviation"}


@dataclass(frozen=True)
class Section:
    """A group of charts.

    Attributes:
        title: Title of the group.
        text: Explanation of the charts.
        charts: Charts of the group.
    """

    title: str
    text: str
    charts: Sequence[Chart]


def sections(outcome: Outcome) -> Iterator[Section]:
    """Yields the groups of charts for which there are results.

    Args:
        outcome: Outcome of a study, possibly incomplete.
    """
    for title, text, charts in (
        ("Every run", "Small dots are seeds, large ones means, bars standard errors.", _every_run(outcome)),
        (_axis_title(outcome), "Bands are standard errors; what is shaded between is the gap.", _along(outcome)),
        ("Where the error comes from", "Parts of the expected error; dots are what was measured.", _parts(outcome)),
        *((f"Learning curves: {name}", _OF_CURVES, curves(outcome, name)) for name in curve_names(outcome)),
        ("Weights", "Of all matrices, all seeds together; counts on a logarithmic scale.", _weights(outcome)),
        *((f"Activations: {label}", _OF_LAYERS, _activations(outcome, kind)) for kind, label in _STATISTICS.items()),
    ):
        drawn = list(charts)
        if drawn:
            yield Section(title, text, drawn)


def _every_run(outcome: Outcome) -> Iterator[Chart]:
    metric = outcome.study.metric
    found = summaries(outcome, metric)
    if not found:
        return
    factor, names = factor_of(metric), list(found)
    values = [value for entry in found.values() for value in entry.values.values()]
    with drawing(4.8, 0.7 + 0.28 * len(names), value_axis="x") as drawn:
        axes = drawn.axes
        for row, name in enumerate(names):
            seeds = {seed: factor * value for seed, value in found[name].values.items()}
            (dots,) = axes.plot(
                list(seeds.values()), [row] * len(seeds), "o", color=GRAY, alpha=0.6, markersize=3.5, markeredgewidth=0
            )
            texts = [f"seed {seed}: {number(metric, value)}" for seed, value in found[name].values.items()]
            drawn.series(dots, name, texts=texts)
            error = 0 if math.isnan(found[name].error) else factor * found[name].error
            mean = axes.errorbar(
                factor * found[name].mean, row, xerr=error, fmt="o", color=BLUE, markersize=6, capsize=3, elinewidth=1.4
            )
            texts = [f"mean: {number(metric, found[name].mean, found[name].error)}"]
            drawn.series(mean.lines[0], name, texts=texts)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(label_of(metric))
        axes.grid(False, axis="y")
        if min(values) > 0 and max(values) > 100 * min(values):
            make_logarithmic(axes, "x")
        told = "; ".join(f"{name} {number(metric, found[name].mean, found[name].error)}" for name in names)
        yield drawn.finished("every run", "", f"{readable(metric)} of every run. {told}")


def _axis_title(outcome: Outcome) -> str:
    axis = outcome.study.axis
    return f"Against {axis.label}" if axis else ""


def _along(outcome: Outcome) -> Iterator[Chart]:
    axis, metric = outcome.study.axis, outcome.study.metric
    if axis is None:
        return
    split, _, name = metric.partition("/")
    names = [metric]
    if name and split == "test":
        names = [metric] + ["test/loss"] * (name != "loss")
    for chosen in names:
        test = summaries(outcome, chosen)
        train = summaries(outcome, chosen.replace("test/", "train/")) if chosen.startswith("test/") else {}
        if len(test) < 2:
            continue
        factor = factor_of(chosen)
        with drawing() as drawn:
            axes, where = drawn.axes, _positions(outcome, axis, test)
            upper = _band(drawn, where, list(test.values()), factor, ORANGE, "test" if train else "")
            if len(train) == len(test):
                lower = _band(drawn, where, list(train.values()), factor, BLUE, "train")
                axes.fill_between(where, lower, upper, color=GRAY, alpha=0.2, linewidth=0)
            _set_axis(drawn, axis)
            axes.set_ylabel(label_of(chosen.partition("/")[2] or chosen))
            told = f"{readable(chosen)} against {axis.label}"
            yield drawn.finished(f"along {chosen}", readable(chosen.partition("/")[2] or chosen), told)


def _positions(outcome: Outcome, axis: Axis, found: dict[str, Summary]) -> list[float]:
    return [axis.values[list(outcome.study.variants).index(name)] for name in found]


def _band(
    drawn: Drawing, where: Sequence[float], values: Sequence[Summary], factor: float, color: str, label: str
) -> list[float]:
    means = [factor * value.mean for value in values]
    errors = [0 if math.isnan(value.error) else factor * value.error for value in values]
    (line,) = drawn.axes.plot(where, means, "o-", color=color, markersize=4)
    drawn.series(line, label)
    low, high = ([mean + sign * error for mean, error in zip(means, errors, strict=True)] for sign in (-1, 1))
    drawn.axes.fill_between(where, low, high, color=color, alpha=0.25, linewidth=0)
    if label:
        name_line(drawn.axes, where[-1], means[-1], label, color)
    return means


def _set_axis(drawn: Drawing, axis: Axis) -> None:
    drawn.axes.set_xlabel(axis.label)
    if axis.logarithmic:
        make_logarithmic(drawn.axes, "x")
    drawn.axes.margins(x=0.12)


def _parts(outcome: Outcome) -> Iterator[Chart]:
    """Stacks the parts of the error: bias², variance and noise, or those of the error rate."""
    found = parts_of(outcome)
    if found is None:
        return
    axis, labels = outcome.study.axis, list(found.variants)
    with drawing(4.8, 3.0) as drawn:
        axes = drawn.axes
        where = (
            [axis.values[list(outcome.study.variants).index(variant)] for variant in labels]
            if axis
            else list(range(len(labels)))
        )
        colors = dict(zip(found.names, (BLUE, ORANGE, GRAY, GREEN), strict=False))
        if axis and len(labels) > 1:
            axes.stackplot(
                where,
                *found.stacked.values(),
                colors=[colors[name] for name in found.stacked],
                alpha=0.75,
                linewidth=0,
            )
            _set_axis(drawn, axis)
            axes.margins(x=0.02)
        else:
            base = np.zeros(len(labels))
            for name, values in found.stacked.items():
                axes.bar(where, values, bottom=base, color=colors[name], alpha=0.75, width=0.6)
                base += np.asarray(values)
            axes.set_xticks(where, labels, rotation=20, ha="right")
        tops = np.cumsum(list(found.stacked.values()), axis=0)
        for (name, values), top in zip(found.stacked.items(), tops, strict=True):
            # Invisible markers, at which the page's pointer finds the part below.
            (edge,) = axes.plot(where, top, "o", alpha=0, color=colors[name])
            told = [f"{label}: {value:.4f}" for label, value in zip(labels, values, strict=True)]
            drawn.series(edge, name, texts=told)
        errors = [0 if math.isnan(error) else error for error in found.errors]
        dots = axes.errorbar(where, found.measured, yerr=errors, fmt="o", color=INK, markersize=4, capsize=2)
        told = [f"{label}: {value:.4f}" for label, value in zip(labels, found.measured, strict=True)]
        drawn.series(dots.lines[0], "measured", texts=told)
        axes.set_ylabel(found.label)
        axes.set_ylim(bottom=0)
        handles = [axes.plot([], [], "s", color=colors[name], alpha=0.75, label=name)[0] for name in found.stacked]
        handles.append(axes.plot([], [], "o", color=INK, markersize=4, label="measured")[0])
        axes.legend(handles=handles, frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
        described = "; ".join(
            f"{label}: " + ", ".join(f"{name} {values[index]:.3g}" for name, values in found.stacked.items())
            for index, label in enumerate(labels)
        )
        yield drawn.finished("parts of the error", "", f"Parts of the error. {described}")


def _weights(outcome: Outcome) -> Iterator[Chart]:
    variants, found = list(outcome.study.variants), collected(outcome, "weights")
    files = file_names(variants)
    if not found:
        return
    totals = {variant: np.sum([run["counts"] for run in runs], axis=0) for variant, runs in found.items()}
    highest = max(counts.max() for counts in totals.values())
    for variant, runs in found.items():
        edges, counts = np.array(runs[0]["edges"]), totals[variant]
        zeros, _ = mean_and_error([run["zero_fraction"] for run in runs])
        with drawing() as drawn:
            axes = drawn.axes
            drawn.series(axes.stairs(counts, edges, fill=True, color=BLUE, alpha=0.75), "")
            make_logarithmic(axes, "y")
            axes.set_ylim(0.7, 2 * highest)
            axes.set_xlabel("weight")
            axes.set_ylabel("count")
            text = f"{100 * zeros:.3g} % exact zeros"
            axes.annotate(text, (0.98, 0.95), xycoords="axes fraction", ha="right", va="top", fontsize=8)
            told = f"Histogram of the weights of {variant}: {text}"
            yield drawn.finished(f"weights {files[variant]}", variant, told, variant=variants.index(variant))


def _activations(outcome: Outcome, kind: str) -> Iterator[Chart]:
    variants, label = list(outcome.study.variants), _STATISTICS[kind]
    files = file_names(variants)
    for variant, runs in collected(outcome, "activations").items():
        steps, layers = _layer_means(runs, kind)
        lines = len(variants) * len(layers)
        steps, layers = thinned(steps, lines), {layer: thinned(values, lines) for layer, values in layers.items()}
        with drawing() as drawn:
            axes = drawn.axes
            for index, (layer, values) in enumerate(layers.items()):
                (line,) = axes.plot(steps, values, color=shade(index, len(layers)), linewidth=1.3)
                drawn.series(line, layer)
                if len(layers) <= 3 or index in (0, len(layers) - 1):
                    name_line(axes, steps[-1], values[-1], layer, INK)
            axes.set_xlabel("step")
            axes.set_ylabel(label)
            if kind == "std" and all(min(values) > 0 for values in layers.values()):
                make_logarithmic(axes, "y")
            ends = ", ".join(f"{layer} {values[-1]:.3g}" for layer, values in layers.items())
            told = f"{label} of the activations of {variant} through training; at the end: {ends}"
            name = f"activations {kind} {files[variant]}"
            yield drawn.finished(name, variant, told, variant=variants.index(variant))


def _layer_means(runs: list[Any], kind: str) -> tuple[list[float], dict[str, list[float]]]:
    steps = min((run["steps"] for run in runs), key=len)
    count = len(steps)
    return steps, {
        layer: np.mean([run["layers"][layer][kind][:count] for run in runs], axis=0).tolist()
        for layer in runs[0]["layers"]
        if all(layer in run["layers"] for run in runs)
    }
