"""The HTML page: a template filled with the outcome of a search."""

import math
from collections.abc import Iterator

from lightning_reg.search.outcome import COCKTAIL, SearchOutcome
from lightning_reg.search.report.charts import sections
from lightning_reg.search.trials.tried import Tried
from lightning_reg.search.words import shown_value
from lightning_reg.studies.report.numbers import difference_in_words, number, p_value, readable
from lightning_reg.studies.report.page import rendered
from lightning_reg.studies.report.tables import Row
from lightning_reg.text import counted, duration

__all__ = ["headline", "page"]

_MOST_ROWS = 15


def page(outcome: SearchOutcome, python: str, configuration: str) -> str:
    """Returns the page's HTML, including style sheet, script and charts.

    Args:
        outcome: Outcome of the search.
        python: The cocktail as Python code; empty if there is none.
        configuration: The cocktail as YAML; empty if there is none.
    """
    return rendered(
        "search.html",
        "lightning_reg.search.report",
        title=outcome.title,
        question="",
        outcome=outcome,
        extent=_extent(outcome),
        headline=list(headline(outcome)),
        confirmation=_confirmation(outcome),
        trials=_trials(outcome),
        failures=[entry for entry in outcome.tried if entry.value is None],
        sections=list(sections(outcome)),
        python=python,
        configuration=configuration,
        beside="Everything here is in search.json, too.",
    )


def _extent(outcome: SearchOutcome) -> str:
    seconds = math.fsum(entry.seconds for entry in outcome.tried)
    splits = "one validation split" if outcome.splits == 1 else f"{outcome.splits} validation splits"
    return (
        f"{counted(len(outcome.tried), 'trial')} on {splits}, judged by {outcome.metric} "
        f"({'less' if outcome.prefers_less else 'more'} is better); {duration(seconds)} of computing."
    )


def _value(outcome: SearchOutcome, entry: Tried) -> str:
    """Returns a trial's value, and whether its steps take too long for it to win."""
    return shown_value(outcome.metric, entry.value) + (" (too slow)" if (entry.excess or 0.0) > 0 else "")


def headline(outcome: SearchOutcome) -> Iterator[str]:
    """Yields sentences that summarize the outcome of a search."""
    best, confirmation = outcome.best, outcome.confirmation
    if best is None:
        yield "No trial has ended well."
        return
    yield f"Best on validation: {outcome.words(best.cocktail)}, {shown_value(outcome.metric, best.value)}."
    others = [
        f"{entry.name} {_value(outcome, entry)}" for entry in outcome.of_kind("plain", "base") if entry is not best
    ]
    alone = [entry for entry in outcome.of_kind("alone") if entry.value is not None and entry is not best]
    if alone:
        sign = -1 if outcome.prefers_less else 1
        single = max(alone, key=lambda entry: sign * float(entry.value or 0.0))
        others.append(f"the best single technique, {single.name}, {_value(outcome, single)}")
    if others:
        yield f"Beside it: {'; '.join(others)}. These are the values that it was chosen by, so they flatter it."
    if confirmation is None:
        return
    metric, mean = confirmation.metric, confirmation.summaries[COCKTAIL]
    where = "on the test part" if metric.startswith("test/") else "on validation, as there is no test part"
    yield (
        f"With {len(mean.values)} fresh seeds {where}: {number(metric, mean.mean, mean.error)} {readable(metric)}"
        + "".join(_against(outcome, name) for name in ("plain", "base") if name in confirmation.comparisons)
        + "."
    )
    if confirmation.parts:
        earning = [part.switch for part in confirmation.parts if part.earns]
        title = {name: switch.title for name, switch in outcome.space.switches.items()}
        if earning:
            yield f"Parts that earn their place: {', '.join(title[name] for name in earning)}."
        if confirmation.idle:
            yield (
                f"Parts that don't: {', '.join(title[name] for name in confirmation.idle)}; best_small.yaml leaves "
                "them out. That it does as well hasn't been measured anew."
            )


def _against(outcome: SearchOutcome, name: str) -> str:
    confirmation = outcome.confirmation
    if confirmation is None:
        return ""
    found = confirmation.comparisons[name]
    judged = "no test" if math.isnan(found.p) else f"p {p_value(found.p)}"
    return f"; {difference_in_words(confirmation.metric, found)} against {name} ({judged})"


def _confirmation(outcome: SearchOutcome) -> list[Row]:
    confirmation = outcome.confirmation
    if confirmation is None:
        return []
    sign = -1 if outcome.prefers_less else 1
    best = max(confirmation.summaries, key=lambda name: sign * confirmation.summaries[name].mean)
    rows = []
    for name, entry in confirmation.summaries.items():
        cells = [number(confirmation.metric, entry.mean, entry.error), str(len(entry.values))]
        found = confirmation.comparisons.get(name)
        if found is None:
            cells += ["", "", ""]
        else:
            cells += [difference_in_words(confirmation.metric, found), p_value(found.p), p_value(found.exact_p)]
        rows.append(Row(name, cells, is_best=name == best))
    return rows


def _trials(outcome: SearchOutcome) -> list[Row]:
    """Returns the rows of the best trials and of all first trials."""
    sign = -1 if outcome.prefers_less else 1
    valued = [entry for entry in outcome.tried if entry.value is not None]
    ranked = sorted(valued, key=lambda entry: -sign * float(entry.value or 0.0))
    shown = [entry for entry in ranked if entry in ranked[:_MOST_ROWS] or entry.kind != "search"]
    plain = next((entry.step_seconds for entry in outcome.of_kind("plain") if entry.step_seconds), None)
    return [_trial_row(outcome, entry, plain) for entry in shown]


def _trial_row(outcome: SearchOutcome, tried: Tried, plain: float | None) -> Row:
    cost = "–" if plain is None or tried.step_seconds is None else f"{tried.step_seconds / plain:.2f} ×"
    return Row(
        tried.name,
        [shown_value(outcome.metric, tried.value), cost, outcome.words(tried.cocktail)],
        is_best=tried is outcome.best,
    )
