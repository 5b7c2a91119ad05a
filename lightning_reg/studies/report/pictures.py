"""The pictures of a study, from whatever its runs have collected."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_reg.studies.outcome import Axis, Outcome, collected
from lightning_reg.studies.report.curves import curve_names, curves
from lightning_reg.studies.report.decomposition import parts_of
from lightning_reg.studies.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    Picture,
    factor_of,
    figure,
    file_names,
    finished,
    label_of,
    name_line,
    shade,
)
from lightning_reg.studies.report.words import number, readable
from lightning_reg.studies.statistics import Summary, mean_and_error, summaries

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["sections"]

Section = tuple[str, str, list[Picture]]
_STATISTICS = {"mean": "mean", "std": "standard deviation"}


def sections(outcome: Outcome) -> Iterator[Section]:
    """Yields groups of pictures, each with a title and what is to be seen.

    Args:
        outcome: With the results.
    """
    for title, text, pictures in (
        ("Every run", "Small dots are seeds, large ones means, bars standard errors.", _every_run(outcome)),
        (_axis_title(outcome), "Bands are standard errors; what is shaded between is the gap.", _along(outcome)),
        ("Where the error comes from", "Parts of the expected error; dots are what was measured.", _parts(outcome)),
        *(
            (
                f"Learning curves: {name}",
                "Means over seeds, and their spread; the gap is shaded.",
                curves(outcome, name),
            )
            for name in curve_names(outcome)
        ),
        ("Weights", "Of all matrices, all seeds together; counts on a logarithmic scale.", _weights(outcome)),
        *(
            (f"Activations: {label}", "Of each layer through training, means over seeds.", _activations(outcome, kind))
            for kind, label in _STATISTICS.items()
        ),
    ):
        drawn = list(pictures)
        if drawn:
            yield title, text, drawn


def _every_run(outcome: Outcome) -> Iterator[Picture]:
    metric = outcome.study.metric
    found = summaries(outcome, metric)
    if not found:
        return
    factor, names = factor_of(metric), list(found)
    values = [value for each in found.values() for value in each.values.values()]
    with figure(5.4, 0.7 + 0.28 * len(names)) as (drawn, axes):
        for row, name in enumerate(names):
            seeds = [factor * value for value in found[name].values.values()]
            axes.plot(seeds, [row] * len(seeds), "o", color=GREY, alpha=0.6, markersize=3.5, markeredgewidth=0)
            error = 0 if math.isnan(found[name].error) else factor * found[name].error
            axes.errorbar(
                factor * found[name].mean, row, xerr=error, fmt="o", color=BLUE, markersize=6, capsize=3, elinewidth=1.4
            )
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(label_of(metric))
        axes.grid(False, axis="y")
        if min(values) > 0 and max(values) > 100 * min(values):
            axes.set_xscale("log")
        told = "; ".join(f"{name} {number(metric, found[name].mean, found[name].error)}" for name in names)
        yield finished(drawn, "every run", "", f"{readable(metric)} of every run. {told}")


def _axis_title(outcome: Outcome) -> str:
    axis = outcome.study.axis
    return f"Against {axis.label}" if axis else ""


def _along(outcome: Outcome) -> Iterator[Picture]:
    axis, metric = outcome.study.axis, outcome.study.metric
    if axis is None:
        return
    split, _, name = metric.partition("/")
    names = [metric]
    if name and split == "test":
        names = [metric] + ["test/loss"] * (name != "loss")
    for each in names:
        test = summaries(outcome, each)
        train = summaries(outcome, each.replace("test/", "train/")) if each.startswith("test/") else {}
        if len(test) < 2:
            continue
        factor = factor_of(each)
        with figure() as (drawn, axes):
            where = _positions(outcome, axis, test)
            upper = _band(axes, where, list(test.values()), factor, ORANGE, "test" if train else "")
            if len(train) == len(test):
                lower = _band(axes, where, list(train.values()), factor, BLUE, "train")
                axes.fill_between(where, lower, upper, color=GREY, alpha=0.2, linewidth=0)
            _set_axis(axes, axis)
            axes.set_ylabel(label_of(each.partition("/")[2] or each))
            told = f"{readable(each)} against {axis.label}"
            yield finished(drawn, f"along {each}", readable(each.partition("/")[2] or each), told)


def _positions(outcome: Outcome, axis: Axis, found: dict[str, Summary]) -> list[float]:
    return [axis.values[list(outcome.study.variants).index(name)] for name in found]


def _band(
    axes: "Axes", where: Sequence[float], values: Sequence[Summary], factor: float, colour: str, label: str
) -> list[float]:
    means = [factor * each.mean for each in values]
    errors = [0 if math.isnan(each.error) else factor * each.error for each in values]
    axes.plot(where, means, "o-", color=colour, markersize=4)
    low, high = ([mean + sign * error for mean, error in zip(means, errors, strict=True)] for sign in (-1, 1))
    axes.fill_between(where, low, high, color=colour, alpha=0.25, linewidth=0)
    if label:
        name_line(axes, where[-1], means[-1], label, colour)
    return means


def _set_axis(axes: "Axes", axis: Axis) -> None:
    axes.set_xlabel(axis.label)
    if axis.logarithmic:
        axes.set_xscale("log")
    axes.margins(x=0.12)


def _parts(outcome: Outcome) -> Iterator[Picture]:
    """Stacked: bias², variance and noise of a squared error, or the parts of the share of wrong answers."""
    found = parts_of(outcome)
    if found is None:
        return
    axis, labels = outcome.study.axis, list(found.variants)
    with figure(4.8, 3.0) as (drawn, axes):
        where = (
            [axis.values[list(outcome.study.variants).index(each)] for each in labels]
            if axis
            else list(range(len(labels)))
        )
        colours = dict(zip(found.names, (BLUE, ORANGE, GREY, GREEN), strict=False))
        if axis and len(labels) > 1:
            axes.stackplot(
                where,
                *found.stacked.values(),
                colors=[colours[name] for name in found.stacked],
                alpha=0.75,
                linewidth=0,
            )
            _set_axis(axes, axis)
            axes.margins(x=0.02)
        else:
            base = np.zeros(len(labels))
            for name, values in found.stacked.items():
                axes.bar(where, values, bottom=base, color=colours[name], alpha=0.75, width=0.6)
                base += np.asarray(values)
            axes.set_xticks(where, labels, rotation=20, ha="right")
        errors = [0 if math.isnan(each) else each for each in found.errors]
        axes.errorbar(where, found.measured, yerr=errors, fmt="o", color=INK, markersize=4, capsize=2)
        axes.set_ylabel(found.label)
        axes.set_ylim(bottom=0)
        handles = [axes.plot([], [], "s", color=colours[name], alpha=0.75, label=name)[0] for name in found.stacked]
        handles.append(axes.plot([], [], "o", color=INK, markersize=4, label="measured")[0])
        axes.legend(handles=handles, frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
        told = "; ".join(
            f"{label}: " + ", ".join(f"{name} {values[index]:.3g}" for name, values in found.stacked.items())
            for index, label in enumerate(labels)
        )
        yield finished(drawn, "parts of the error", "", f"Parts of the error. {told}")


def _weights(outcome: Outcome) -> Iterator[Picture]:
    found, files = collected(outcome, "weights"), file_names(outcome.study.variants)
    if not found:
        return
    totals = {variant: np.sum([each["counts"] for each in runs], axis=0) for variant, runs in found.items()}
    highest = max(counts.max() for counts in totals.values())
    for variant, runs in found.items():
        edges, counts = np.array(runs[0]["edges"]), totals[variant]
        zeros, _ = mean_and_error([each["zero_fraction"] for each in runs])
        with figure() as (drawn, axes):
            axes.stairs(counts, edges, fill=True, color=BLUE, alpha=0.75)
            axes.set_yscale("log")
            axes.set_ylim(0.7, 2 * highest)
            axes.set_xlabel("weight")
            axes.set_ylabel("count")
            text = f"{100 * zeros:.3g} % exact zeros"
            axes.annotate(text, (0.98, 0.95), xycoords="axes fraction", ha="right", va="top", fontsize=8)
            yield finished(
                drawn, f"weights {files[variant]}", variant, f"Histogram of the weights of {variant}: {text}"
            )


def _activations(outcome: Outcome, kind: str) -> Iterator[Picture]:
    files, label = file_names(outcome.study.variants), _STATISTICS[kind]
    for variant, runs in collected(outcome, "activations").items():
        steps, layers = _layer_means(runs, kind)
        with figure() as (drawn, axes):
            for index, (layer, values) in enumerate(layers.items()):
                colour = shade(index, len(layers))
                axes.plot(steps[: len(values)], values, color=colour, linewidth=1.3)
                if len(layers) <= 3 or index in (0, len(layers) - 1):
                    name_line(axes, steps[len(values) - 1], values[-1], layer, INK)
            axes.set_xlabel("step")
            axes.set_ylabel(label)
            if kind == "std" and all(min(values) > 0 for values in layers.values()):
                axes.set_yscale("log")
            ends = ", ".join(f"{layer} {values[-1]:.3g}" for layer, values in layers.items())
            told = f"{label} of the activations of {variant} through training; at the end: {ends}"
            yield finished(drawn, f"activations {kind} {files[variant]}", variant, told)


def _layer_means(runs: list[Any], kind: str) -> tuple[list[float], dict[str, list[float]]]:
    steps = min((each["steps"] for each in runs), key=len)
    count = len(steps)
    return steps, {
        layer: np.mean([each["layers"][layer][kind][:count] for each in runs], axis=0).tolist()
        for layer in runs[0]["layers"]
        if all(layer in each["layers"] for each in runs)
    }
