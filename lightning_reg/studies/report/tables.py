"""Tables of a study's page, with cells of plain text."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lightning_reg.core.metric_names import is_accuracy
from lightning_reg.studies.outcome import Outcome, collected
from lightning_reg.studies.report.decomposition import parts_of
from lightning_reg.studies.report.numbers import difference_in_words, gap_in_words, number, p_value, readable
from lightning_reg.studies.report.words import gaps
from lightning_reg.studies.statistics import (
    SIGNIFICANT,
    Comparison,
    against_baseline,
    best_of,
    mean_and_error,
    summaries,
)
from lightning_reg.text import duration

__all__ = ["Row", "Table", "tables"]

_ENOUGH = 5  # models for a meaningful majority vote


@dataclass(frozen=True)
class Row:
    """The row of one variant.

    Attributes:
        name: Name of the variant, the first column.
        cells: Texts of the other columns.
        is_best: Whether the variant is marked as the best.
        note: Note next to the name.
    """

    name: str
    cells: Sequence[str]
    is_best: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a title above and notes below.

    Attributes:
        title: Title of the table.
        head: Titles of the columns.
        rows: Rows of the table.
        notes: Paragraphs that explain the table.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = ()


def tables(outcome: Outcome) -> Iterator[Table]:
    """Yields the tables for which there are results.

    Args:
        outcome: Outcome of a study, possibly incomplete.
    """
    yield from _results(outcome)
    yield from _decomposition(outcome)
    yield from _reload(outcome)


def _results(outcome: Outcome) -> Iterator[Table]:
    study, metric = outcome.study, outcome.study.metric
    found, compared, best = summaries(outcome, metric), against_baseline(outcome, metric), best_of(outcome, metric)
    if not found:
        return
    has_exact = any(not math.isnan(comparison.exact_p) for comparison in compared.values())
    gap, extra = gaps(outcome), _extra_columns(outcome)
    points = ", points" if is_accuracy(metric) else ""
    head = ["variant", readable(metric) + (", mean ± standard error" if len(study.seeds) > 1 else "")]
    head += [f"difference from {study.baseline}{points}", "p, t-test"] * bool(compared)
    head += ["p, permutations"] * has_exact
    head += [f"gap to training{points}"] * bool(gap) + list(extra) + ["time a run"]
    rows = []
    for variant, summary in found.items():
        cells = [number(metric, summary.mean, summary.error)]
        if compared:
            cells += _compared(metric, compared.get(variant), has_exact)
        if gap:
            found_gap = gap.get(variant)
            cells.append("–" if found_gap is None else gap_in_words(metric, found_gap.mean, found_gap.error))
        cells += [values.get(variant, "–") for values in extra.values()]
        cells.append(duration(mean_and_error([run.seconds for run in outcome.results if run.variant == variant])[0]))
        is_best = best is not None and best.is_certain and best.variant == variant
        rows.append(Row(variant, cells, is_best, _counted(outcome, variant, len(summary.values))))
    without = [
        other for other in study.variants if other not in found and any(r.variant == other for r in outcome.results)
    ]
    notes = [f"No run of {', '.join(without)} gave a number."] * bool(without)
    yield Table("Results", head, rows, [*notes, _how_judged(outcome, has_exact=has_exact)])


def _compared(metric: str, comparison: Comparison | None, has_exact: bool) -> list[str]:
    if comparison is None:
        return [""] * (2 + has_exact)
    exact = [p_value(comparison.exact_p)] * has_exact
    return [difference_in_words(metric, comparison), p_value(comparison.p), *exact]


def _counted(outcome: Outcome, variant: str, numbers: int) -> str:
    """Returns a note on the number of seeds if some are missing."""
    seeds, ended = len(outcome.study.seeds), sum(result.variant == variant for result in outcome.results)
    if numbers == seeds:
        return ""
    missing = f", {ended - numbers} gave no number" if ended > numbers else ""
    return f"{numbers} of {seeds} seeds{missing}"


def _extra_columns(outcome: Outcome) -> dict[str, dict[str, str]]:
    """Returns further columns by title: other metrics of the test split, and the share of zero weights."""
    columns: dict[str, dict[str, str]] = {}
    study = outcome.study
    in_table = {"bias_squared", "variance", "noise", "sum"} if collected(outcome, "decomposition") else set()
    for metric in dict.fromkeys(name for result in outcome.results for name in result.metrics if name not in in_table):
        is_other = metric.startswith("test/") or "/" not in metric or not study.metric.startswith("test/")
        if metric == study.metric or not is_other:
            continue
        found = summaries(outcome, metric)
        columns[readable(metric)] = {name: number(metric, entry.mean) for name, entry in found.items()}
    weights = collected(outcome, "weights")
    if weights:
        zeros = {name: mean_and_error([run["zero_fraction"] for run in runs])[0] for name, runs in weights.items()}
        columns["exact zeros"] = {name: f"{100 * share:.3g} %" for name, share in zeros.items()}
    return columns


def _how_judged(outcome: Outcome, *, has_exact: bool) -> str:
    study, pairs = outcome.study, len(outcome.study.seeds)
    if pairs < 2:
        return "With one seed nothing can be told of chance."
    is_fit = any(result.curves for result in outcome.results)
    exact = (
        " The second p is that of the exact permutation test, which flips the signs of the differences in all ways and "
        f"assumes no distribution: with {pairs} seeds it can't be below {2 / 2**pairs:.3g} before the correction."
    )
    once = " The test part was looked at once a run, with the weights that were best on the validation part."
    return (
        "Standard errors are over seeds, which pair the variants: the same seed gives each the same data and the same "
        "random numbers. p is that of a two-sided paired t-test, corrected after Holm for the number of comparisons "
        f"with {study.baseline}.{exact if has_exact else ''} A variant is marked as best only where it differs from "
        f"every other one with p < {SIGNIFICANT} in the t-test after the same correction."
        f"{once if is_fit and study.metric.startswith('test/') else ''}"
    )


def _decomposition(outcome: Outcome) -> Iterator[Table]:
    found = parts_of(outcome)
    if found is None:
        return
    rows = []
    for index, variant in enumerate(found.variants):
        parts = [values[index] for values in found.stacked.values()]
        notes = [values[index] for values in found.notes.values()]
        error = found.errors[index]
        measured = f"{found.measured[index]:.4f}" + ("" if math.isnan(error) else f" ± {error:.4f}")
        rows.append(Row(variant, [*(f"{value:.4f}" for value in (*parts, *notes, sum(parts))), measured]))
    note = (
        "The answer that most of a variant's models give is the main prediction: bias is how often it is wrong, "
        "variance how often models differ from it where it is right. Where it is wrong, variance undoes errors, and "
        "less of the bias stays (Domingos, 2000)."
        if found.notes
        else "Bias², variance and noise are means over points; their sum is the expected error. The standard errors "
        "here are those of the noise in the targets, with the fits as they are; those above are over seeds."
    )
    few = min(len(runs) for runs in collected(outcome, "predictions").values()) if found.notes else _ENOUGH
    if few < _ENOUGH:
        note += f" With {few} models the answer that most give is uncertain, and so are these numbers."
    head = ["variant", *found.names, *found.notes, "sum", f"measured {found.label}"]
    yield Table("Bias and variance", head, rows, [note])


def _reload(outcome: Outcome) -> Iterator[Table]:
    found = collected(outcome, "reload")
    if not found:
        return
    rows = []
    for variant, runs in found.items():
        same = f"{sum(bool(run['same_classes']) for run in runs)} of {len(runs)}"
        difference = f"{max(run['largest_difference'] for run in runs):.2g}"
        rows.append(Row(variant, [str(max(run["samples"] for run in runs)), difference, same]))
    head = ["variant", "samples", "largest difference of a probability", "models that predict the same classes"]
    yield Table("Saved, and loaded in a new process", head, rows)
