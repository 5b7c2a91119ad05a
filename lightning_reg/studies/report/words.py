"""Sentences about the outcome of a study, generated from its numbers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lightning_reg.core.metric_names import is_accuracy
from lightning_reg.functional.measures.learning_curves import generalization_gap
from lightning_reg.studies.outcome import Outcome, collected
from lightning_reg.studies.report.numbers import difference_in_words, factor_of, number, p_value, readable
from lightning_reg.studies.statistics import (
    Best,
    Comparison,
    Summary,
    against_baseline,
    best_of,
    paired,
    summaries,
)

__all__ = ["gaps", "headline"]


def gaps(outcome: Outcome) -> dict[str, Summary]:
    """Returns by variant how much worse the study's metric is on the test split than on training data."""
    metric = outcome.study.metric
    split, _, name = metric.partition("/")
    train = summaries(outcome, f"train/{name}") if split == "test" else {}
    found = {}
    for variant, test in summaries(outcome, metric).items():
        if variant in train:
            seeds = [seed for seed in test.values if seed in train[variant].values]
            values = {
                seed: generalization_gap(
                    train[variant].values[seed], test.values[seed], lower_is_better=outcome.study.prefers_less(metric)
                )
                for seed in seeds
            }
            if values:
                found[variant] = Summary.of(values)
    return found


def headline(outcome: Outcome) -> list[str]:
    """Summarizes the outcome of a study in a few sentences.

    Args:
        outcome: Results of the study's runs, of which some may have failed.
    """
    return [*_about_the_best(outcome), *_about_the_baseline(outcome), *_about_gaps(outcome), *_about_kinds(outcome)]


def _about_the_best(outcome: Outcome) -> Iterator[str]:
    study, metric = outcome.study, outcome.study.metric
    found, best = summaries(outcome, metric), best_of(outcome, metric)
    if best is None:
        yield f"No run has ended with a value of {readable(metric)}."
        return
    mean = found[best.variant]
    value = number(metric, mean.mean, mean.error)
    if best.runner_up is None or best.comparison is None:
        yield f"{best.variant} has a {readable(metric)} of {value}."
        return
    variant, second = _named(outcome, best.variant), found[best.runner_up]
    ahead = f"{_named(outcome, best.runner_up)} follows with {number(metric, second.mean, second.error)}"
    direction = "lowest" if study.prefers_less(metric) else "highest"
    seeds = f"{best.comparison.pairs} seeds"
    if best.is_certain:
        yield (
            f"{variant} is best: its {readable(metric)} is {value}, {direction} by more than chance beside every "
            f"other variant; {ahead} ({_judged(best.comparison)}, {seeds})."
        )
    elif math.isnan(best.comparison.p):
        why = "With one seed" if len(study.seeds) == 1 else "With so few seeds, or differences that don't scatter,"
        yield (
            f"{variant} has the {direction} {readable(metric)}, {value}; {ahead}. {why} no difference can be told from "
            "chance."
        )
    else:
        yield (
            f"No variant is best beyond chance. {variant} has the {direction} {readable(metric)}, {value}; "
            f"{ahead} ({_judged(best.comparison)}, {seeds})." + _undecided(best)
        )


def _named(outcome: Outcome, variant: str) -> str:
    """Returns the name of a variant, prefixed with the axis label if it is only a number."""
    is_number = variant.replace(".", "", 1).replace("e-", "", 1).isdigit()
    return f"{outcome.study.axis.label} {variant}" if outcome.study.axis and is_number else variant


def _undecided(best: Best) -> str:
    others = [
        f"{comparison.other} ({_judged(comparison)})"
        for comparison in best.undecided
        if comparison.other != best.runner_up
    ]
    if not others:
        return ""
    is_second = any(comparison.other == best.runner_up for comparison in best.undecided)
    beginning = "Nor can it be told from" if is_second else "It can't be told from"
    more = f" and {len(others) - 2} more" if len(others) > 3 else ""
    return f" {beginning} {_listed(others[:2] if more else others)}{more}."


def _judged(comparison: Comparison) -> str:
    shown = p_value(comparison.p)
    return "no test" if math.isnan(comparison.p) else f"p {shown}" if shown.startswith("<") else f"p = {shown}"


def _about_the_baseline(outcome: Outcome) -> Iterator[str]:
    study = outcome.study
    compared = against_baseline(outcome, study.metric)
    if not compared or all(math.isnan(comparison.p) for comparison in compared.values()):
        return
    certain = {name: comparison for name, comparison in compared.items() if comparison.is_significant}
    if not certain:
        others = _listed(list(compared)) if len(compared) < 3 else f"None of the {len(compared)} other variants"
        how = "by more than chance" if len(compared) >= 3 else "by no more than chance"
        yield f"{others} {'differ' if len(compared) == 2 else 'differs'} from {study.baseline} {how}."
        return
    sign = -1 if study.prefers_less(study.metric) else 1
    unit = " points" if is_accuracy(study.metric) else ""
    for word, found in (
        ("better", {name: comparison for name, comparison in certain.items() if sign * comparison.difference > 0}),
        ("worse", {name: comparison for name, comparison in certain.items() if sign * comparison.difference < 0}),
    ):
        if found:
            listed = [
                f"{name} ({difference_in_words(study.metric, entry)}{unit}, {_judged(entry)})"
                for name, entry in found.items()
            ]
            yield f"By more than chance {word} than {study.baseline}: {_listed(listed)}."


def _about_gaps(outcome: Outcome) -> Iterator[str]:
    found = gaps(outcome)
    if len(found) < 2:
        return
    metric = outcome.study.metric
    unit = " points" if is_accuracy(metric) else ""
    shown = {name: f"{factor_of(metric) * entry.mean:.3g}{unit}" for name, entry in found.items()}
    widest, smallest = max(found, key=lambda name: found[name].mean), min(found, key=lambda name: found[name].mean)
    compared = paired(found[widest].values, found[smallest].values, smallest)
    # A Bonferroni correction: these two were selected among all pairs as the farthest apart.
    pairs = len(found) * (len(found) - 1) // 2
    compared = replace(compared, p=compared.p if math.isnan(compared.p) else min(1.0, pairs * compared.p))
    short = readable(metric.partition("/")[2])
    if compared.is_significant:
        yield (
            f"The gap of {short} between training and test is widest with {_named(outcome, widest)} ({shown[widest]}) "
            f"and smallest with {_named(outcome, smallest)} ({shown[smallest]}; {_judged(compared)})."
        )
    else:
        judged = "which can't be told from chance" if math.isnan(compared.p) else f"within chance, {_judged(compared)}"
        yield f"Gaps of {short} between training and test lie from {shown[smallest]} to {shown[widest]}, {judged}."


def _about_kinds(outcome: Outcome) -> Iterator[str]:
    decompositions = [run for runs in collected(outcome, "decomposition").values() for run in runs]
    if decompositions:
        distances = [
            abs(
                decomposition["error"]
                - decomposition["bias_squared"]
                - decomposition["variance"]
                - decomposition["noise"]
            )
            / decomposition["error_standard_error"]
            for decomposition in decompositions
            if decomposition["error_standard_error"] > 0
        ]
        within = sum(distance <= 2 for distance in distances)
        if distances:  # without noise there is no difference to check
            yield (
                f"In {within} of {len(distances)} runs bias², variance and noise sum to the measured error within two "
                f"of its standard errors; chance alone gives 95 %, and the largest distance is {max(distances):.1f}."
            )
    reloads = [run for runs in collected(outcome, "reload").values() for run in runs]
    if reloads:
        largest = max(reload["largest_difference"] for reload in reloads)
        same = sum(bool(reload["same_classes"]) for reload in reloads)
        yield (
            f"{same} of {len(reloads)} models predict the same classes after they were saved and loaded in a new "
            f"process; their probabilities differ by at most {largest:.2g}."
        )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
