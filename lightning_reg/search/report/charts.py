"""Charts of a search."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from lightning_reg.core.charts import make_logarithmic
from lightning_reg.search.outcome import SearchOutcome
from lightning_reg.search.spaces.ranges import Interval
from lightning_reg.search.trials.tried import Tried
from lightning_reg.search.words import shown_strength, shown_value
from lightning_reg.studies.report.charts import Section
from lightning_reg.studies.report.figures import BLUE, GRAY, ORANGE, Chart, drawing, label_of, shade
from lightning_reg.studies.report.numbers import factor_of

__all__ = ["sections"]

_MOST_BARS = 20
_FEWEST_POINTS = 4
_MOST_AXES = 12


def sections(outcome: SearchOutcome) -> Iterator[Section]:
    """Yields the groups of charts for which there is data."""
    for title, text, charts in (
        ("History", "Every trial in the order in which it was proposed; the line is the best so far.", _history),
        (
            "What mattered",
            "Importance by conditional PED-ANOVA: how much a choice tells the best tenth of the trials from the rest. "
            "A strength is judged among the trials that had its technique on. With a few dozen trials this is a hint.",
            _importances,
        ),
        ("What was tried where", "A line a trial, from the worst in orange to the best in blue.", _parallel),
        ("Strengths", "Trials that had the technique on, against how strong it was.", _strengths),
        ("Cost against gain", "A training step's time, as a multiple of the plain one's.", _costs),
    ):
        drawn = list(charts(outcome))
        if drawn:
            yield Section(title, text, drawn)


def _valued(outcome: SearchOutcome) -> list[Tried]:
    return [trial for trial in outcome.tried if trial.value is not None]


def _values(outcome: SearchOutcome, tried: Sequence[Tried]) -> list[float]:
    factor = factor_of(outcome.metric)
    return [factor * float(trial.value or 0.0) for trial in tried]


def _texts(outcome: SearchOutcome, tried: Sequence[Tried]) -> list[str]:
    return [
        f"{trial.name}, {shown_value(outcome.metric, trial.value)}: {outcome.words(trial.cocktail)}" for trial in tried
    ]


def _history(outcome: SearchOutcome) -> Iterator[Chart]:
    tried = _valued(outcome)
    if not tried:
        return
    values = _values(outcome, tried)
    choose = min if outcome.prefers_less else max
    best = [choose(values[: index + 1]) for index in range(len(values))]
    with drawing(7.0, 2.8) as drawn:
        positions = [trial.position for trial in tried]
        (dots,) = drawn.axes.plot(positions, values, "o", color=BLUE, markersize=4, alpha=0.7, markeredgewidth=0)
        drawn.series(dots, "", texts=_texts(outcome, tried))
        drawn.axes.plot(positions, best, color=ORANGE, drawstyle="steps-post")
        drawn.axes.set_xlabel("trial")
        drawn.axes.set_ylabel(label_of(outcome.metric))
        yield drawn.finished("history", "", f"{outcome.metric} of {len(tried)} trials in their order")


def _importances(outcome: SearchOutcome) -> Iterator[Chart]:
    found = sorted(outcome.importances.items(), key=lambda item: -item[1])[:_MOST_BARS]
    found = [(name, value) for name, value in found if value > 0]
    if not found:
        return
    with drawing(5.5, 0.7 + 0.26 * len(found), value_axis="x") as drawn:
        axes = drawn.axes
        axes.barh(range(len(found)), [value for _, value in found], color=BLUE, height=0.6)
        axes.set_yticks(range(len(found)), [name for name, _ in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlabel("importance")
        axes.grid(visible=False, axis="y")
        told = "; ".join(f"{name} {value:.2f}" for name, value in found)
        yield drawn.finished("importances", "", f"Importances. {told}")


def _parallel(outcome: SearchOutcome) -> Iterator[Chart]:
    """Each axis is a switch: off at the bottom, and its first strength above, from weak to strong."""
    tried = [trial for trial in _valued(outcome) if trial.cocktail is not None]
    names = sorted(outcome.space.switches, key=lambda name: -_importance(outcome, name))[:_MOST_AXES]
    names = [name for name in outcome.space.switches if name in names]
    if len(tried) < _FEWEST_POINTS or len(names) < 2:
        return
    sign = -1 if outcome.prefers_less else 1
    ranked = sorted(tried, key=lambda trial: sign * float(trial.value or 0.0))
    with drawing(max(5.0, 0.8 * len(names)), 3.0) as drawn:
        axes = drawn.axes
        for index, trial in enumerate(ranked):
            heights = [_height(outcome, name, trial) for name in names]
            (line,) = axes.plot(
                range(len(names)),
                heights,
                color=shade(len(ranked) - 1 - index, len(ranked)),
                linewidth=2.2 if trial is outcome.best else 0.9,
                alpha=0.9 if trial is outcome.best else 0.45,
            )
            drawn.series(line, f"{trial.name}, {shown_value(outcome.metric, trial.value)}")
        axes.set_xticks(range(len(names)), [outcome.space.switches[name].title for name in names], rotation=30)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
        axes.set_yticks([-0.25, 0, 1], ["off", "weak", "strong"])
        axes.set_ylim(-0.35, 1.08)
        yield drawn.finished("parallel", "", "Which techniques each trial had on, and how strong")


def _importance(outcome: SearchOutcome, switch: str) -> float:
    return sum(value for name, value in outcome.importances.items() if name == switch or name.startswith(f"{switch}."))


def _height(outcome: SearchOutcome, switch: str, tried: Tried) -> float:
    """Returns the height at which a trial's line crosses a switch's axis; strengths span 0 to 1."""
    values = (tried.cocktail or {}).get(switch)
    if values is None:
        return -0.25
    strengths = outcome.space.switches[switch].strengths
    if not strengths:
        return 0.5
    return _share(strengths[0].range, values.get(strengths[0].name))


def _share(range_: Any, value: Any) -> float:
    if not isinstance(range_, Interval):
        options = list(range_.values)
        return options.index(value) / max(len(options) - 1, 1) if value in options else 0.5
    low, high, at = range_.low, range_.high, float(value)
    if range_.kind == "log":
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low)


def _strengths(outcome: SearchOutcome) -> Iterator[Chart]:
    for switch in outcome.space.switches.values():
        for strength in switch.strengths:
            if not isinstance(strength.range, Interval):
                continue
            tried = [
                trial for trial in _valued(outcome) if strength.name in ((trial.cocktail or {}).get(switch.name) or {})
            ]
            if len(tried) < _FEWEST_POINTS:
                continue
            where = [float((trial.cocktail or {})[switch.name][strength.name]) for trial in tried]
            with drawing() as drawn:
                (dots,) = drawn.axes.plot(
                    where, _values(outcome, tried), "o", color=BLUE, markersize=4, alpha=0.7, markeredgewidth=0
                )
                drawn.series(dots, "", texts=_texts(outcome, tried))
                if strength.range.kind == "log":
                    make_logarithmic(drawn.axes, "x")
                drawn.axes.set_xlabel(strength.name)
                drawn.axes.set_ylabel(label_of(outcome.metric))
                told = f"{outcome.metric} against {switch.title}, {strength.name}"
                yield drawn.finished(f"strength {switch.name} {strength.name}", switch.title, told)


def _costs(outcome: SearchOutcome) -> Iterator[Chart]:
    plain = next((trial.step_seconds for trial in outcome.of_kind("plain") if trial.step_seconds), None)
    tried = [trial for trial in _valued(outcome) if trial.step_seconds]
    if plain is None or len(tried) < _FEWEST_POINTS:
        return
    with drawing(5.0, 2.8) as drawn:
        where = [float(trial.step_seconds or 0.0) / plain for trial in tried]
        (dots,) = drawn.axes.plot(
            where, _values(outcome, tried), "o", color=BLUE, markersize=4, alpha=0.7, markeredgewidth=0
        )
        texts = [f"{shown_strength(x)} ×, {text}" for x, text in zip(where, _texts(outcome, tried), strict=True)]
        drawn.series(dots, "", texts=texts)
        drawn.axes.axvline(1.0, color=GRAY, linewidth=0.8)
        drawn.axes.set_xlabel("step, × the plain one's")
        drawn.axes.set_ylabel(label_of(outcome.metric))
        yield drawn.finished("costs", "", f"{outcome.metric} against how long a training step takes")
