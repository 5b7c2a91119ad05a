"""Numbers in words: nothing here is known before a study has run."""

import math
from collections.abc import Iterator, Sequence

from lightning_reg.attach.metric_names import is_accuracy, lower_is_better
from lightning_reg.functional.learning_curves import generalization_gap
from lightning_reg.studies.outcome import Outcome, collected
from lightning_reg.studies.statistics import (
    Best,
    Comparison,
    Summary,
    against_baseline,
    best_of,
    summaries,
)

__all__ = ["difference_in_words", "duration", "gaps", "headline", "number", "p_value", "readable"]


def readable(metric: str) -> str:
    """Returns a metric's name as one would say it.

    >>> readable("test/accuracy"), readable("bias_squared")
    ('test accuracy', 'bias squared')
    """
    return metric.replace("/", " ").replace("_", " ")


def number(metric: str, value: float, error: float = math.nan) -> str:
    """Returns a value with its standard error, accuracies in percent.

    >>> number("test/accuracy", 0.98765, 0.0012), number("test/loss", 0.123456)
    ('98.77 ± 0.12 %', '0.1235')
    """
    if math.isnan(value):
        return "–"
    if is_accuracy(metric):
        value, error, unit = 100 * value, 100 * error, " %"
        shown = [f"{value:.2f}"] if math.isnan(error) else [f"{value:.2f}", f"{error:.2f}"]
    else:
        unit = ""
        shown = [f"{value:.4g}"] if math.isnan(error) else [f"{value:.4g}", f"{error:.2g}"]
    return " ± ".join(shown) + unit


def difference_in_words(metric: str, comparison: Comparison) -> str:
    """Returns a difference with its standard error and sign, of accuracies in percentage points.

    >>> difference_in_words("test/accuracy", Comparison("none", 5, -0.0123, 0.004, 0.03))
    '−1.23 ± 0.40'
    """
    if math.isnan(comparison.difference):
        return "–"
    factor = 100 if is_accuracy(metric) else 1
    value, error = factor * comparison.difference, factor * comparison.error
    shown = f"{abs(value):.2f}" if is_accuracy(metric) else f"{abs(value):.3g}"
    scatter = "" if math.isnan(error) else f" ± {error:.2f}" if is_accuracy(metric) else f" ± {error:.2g}"
    return ("+" if value > 0 else "−" if value < 0 else "") + shown + scatter


def p_value(p: float) -> str:
    """Returns a p-value as people write it.

    >>> p_value(0.0004), p_value(0.0213), p_value(float("nan"))
    ('< .001', '.021', '–')
    """
    if math.isnan(p):
        return "–"
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0") if p < 1 else "1"


def duration(seconds: float) -> str:
    """Returns a time in its own unit.

    >>> duration(3.21), duration(125), duration(7300)
    ('3.2 s', '2 min 5 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def gaps(outcome: Outcome) -> dict[str, Summary]:
    """Returns by variant how much worse the compared metric is on the test part than on training data.

    Args:
        outcome: With the results.
    """
    metric = outcome.study.metric
    split, _, name = metric.partition("/")
    train = summaries(outcome, f"train/{name}") if split == "test" else {}
    found = {}
    for variant, test in summaries(outcome, metric).items():
        if variant in train:
            seeds = [seed for seed in test.values if seed in train[variant].values]
            values = {
                seed: generalization_gap(
                    train[variant].values[seed], test.values[seed], lower_is_better=lower_is_better(metric)
                )
                for seed in seeds
            }
            if values:
                found[variant] = Summary.of(values)
    return found


def headline(outcome: Outcome) -> list[str]:
    """Returns what came out, in a few sentences.

    Args:
        outcome: With the results.
    """
    return [*_about_the_best(outcome), *_about_the_baseline(outcome), *_about_gaps(outcome), *_about_kinds(outcome)]


def _about_the_best(outcome: Outcome) -> Iterator[str]:
    metric = outcome.study.metric
    found, best = summaries(outcome, metric), best_of(outcome, metric)
    if best is None:
        yield f"No run has ended with a value of {readable(metric)}."
        return
    mean = found[best.variant]
    value = number(metric, mean.mean, mean.error)
    if best.runner_up is None or best.comparison is None:
        yield f"{best.variant} has a {readable(metric)} of {value}."
        return
    variant = _named(outcome, best.variant)
    second = found[best.runner_up]
    ahead = f"{_named(outcome, best.runner_up)} follows with {number(metric, second.mean, second.error)}"
    direction = "lowest" if lower_is_better(metric) else "highest"
    if best.comparison.pairs < 2:
        yield (
            f"{variant} has the {direction} {readable(metric)}, {value}; {ahead}. With one seed no difference can "
            "be told from chance."
        )
    elif best.is_certain:
        yield (
            f"{variant} is best: its {readable(metric)} is {value}, {direction} by more than chance beside every "
            f"other variant; {ahead} (p {_p(best.comparison)})."
        )
    else:
        yield (
            f"No variant is best beyond chance. {variant} has the {direction} {readable(metric)}, {value}; "
            f"{ahead} (p {_p(best.comparison)})." + _undecided(best)
        )


def _named(outcome: Outcome, variant: str) -> str:
    """A variant that is called by a number alone, with what the number is."""
    is_number = variant.replace(".", "", 1).replace("e-", "", 1).isdigit()
    return f"{outcome.study.axis.label} {variant}" if outcome.study.axis and is_number else variant


def _undecided(best: Best) -> str:
    others = [f"{each.other} (p {_p(each)})" for each in best.undecided if each.other != best.runner_up]
    if not others:
        return ""
    is_second = any(each.other == best.runner_up for each in best.undecided)
    beginning = "Nor can it be told from" if is_second else "It can't be told from"
    more = f" and {len(others) - 2} more" if len(others) > 3 else ""
    return f" {beginning} {_listed(others[:2] if more else others)}{more}."


def _p(comparison: Comparison) -> str:
    shown = p_value(comparison.p)
    return shown if shown.startswith("<") else f"= {shown}"


def _about_the_baseline(outcome: Outcome) -> Iterator[str]:
    study = outcome.study
    compared = against_baseline(outcome, study.metric)
    if not compared or all(math.isnan(each.p) for each in compared.values()):
        return
    certain = {name: each for name, each in compared.items() if each.is_significant}
    if not certain:
        yield f"None of the {len(compared)} other variants differs from {study.baseline} by more than chance."
        return
    sign = -1 if lower_is_better(study.metric) else 1
    unit = " points" if is_accuracy(study.metric) else ""
    for word, found in (
        ("better", {name: each for name, each in certain.items() if sign * each.difference > 0}),
        ("worse", {name: each for name, each in certain.items() if sign * each.difference < 0}),
    ):
        if found:
            listed = [f"{name} ({difference_in_words(study.metric, each)}{unit})" for name, each in found.items()]
            yield f"By more than chance {word} than {study.baseline}: {_listed(listed)}."


def _about_gaps(outcome: Outcome) -> Iterator[str]:
    found = gaps(outcome)
    if len(found) < 2:
        return
    metric = outcome.study.metric
    unit = "points" if is_accuracy(metric) else ""
    factor = 100 if is_accuracy(metric) else 1
    shown = {name: f"{factor * each.mean:.3g} {unit}".strip() for name, each in found.items()}
    widest, smallest = max(found, key=lambda name: found[name].mean), min(found, key=lambda name: found[name].mean)
    short = readable(metric.partition("/")[2])
    yield (
        f"The gap of {short} between training and test is widest with {widest} ({shown[widest]}) and smallest with "
        f"{smallest} ({shown[smallest]})."
    )


def _about_kinds(outcome: Outcome) -> Iterator[str]:
    decompositions = [each for runs in collected(outcome, "decomposition").values() for each in runs]
    if decompositions:
        distances = [
            abs(each["error"] - each["bias_squared"] - each["variance"] - each["noise"]) / each["error_standard_error"]
            for each in decompositions
            if each["error_standard_error"] > 0
        ]
        within = sum(each <= 2 for each in distances)
        yield (
            f"In {within} of {len(distances)} runs bias², variance and noise sum to the measured error within two of "
            f"its standard errors; chance alone gives 95 %, and the largest distance is {max(distances):.1f}."
        )
    reloads = [each for runs in collected(outcome, "reload").values() for each in runs]
    if reloads:
        largest = max(each["largest_difference"] for each in reloads)
        same = sum(bool(each["same_classes"]) for each in reloads)
        yield (
            f"{same} of {len(reloads)} models predict the same classes after they were saved and loaded in a new "
            f"process; their probabilities differ by at most {largest:.2g}."
        )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
