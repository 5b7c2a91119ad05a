"""The page itself: HTML that needs nothing but itself."""

import html
import math
from collections.abc import Iterable, Sequence

from lightning_reg.attach.metric_names import is_accuracy
from lightning_reg.studies.outcome import Outcome, collected
from lightning_reg.studies.report.decomposition import parts_of
from lightning_reg.studies.report.drawing import Picture
from lightning_reg.studies.report.words import (
    difference_in_words,
    duration,
    gaps,
    headline,
    number,
    p_value,
    readable,
)
from lightning_reg.studies.statistics import SIGNIFICANT, against_baseline, best_of, mean_and_error, summaries

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; --ink: #2b2b2c; --paper: #ffffff; --quiet: #5c5c60; --grid: #dcdcdd; --grey: #8a8a8b;
  --soft: #f4f4f6; --blue: #0072b2; --orange: #d55e00; --green: #008a66; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --paper: #17181a; --quiet: #a6a6ac; --grid: #3a3b3f;
  --grey: #8f9096; --soft: #222327; --blue: #56b4e9; --orange: #f08a3c; --green: #3fc79a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 24px 20px 64px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .2rem; }
h3 { font-size: .95rem; margin: 0 0 .2rem; font-weight: 600; overflow-wrap: anywhere; }
p { margin: .3rem 0 .8rem; max-width: 75ch; }
.quiet { color: var(--quiet); font-size: .9rem; }
.lead { border-left: 4px solid var(--blue); background: var(--soft); padding: .8rem 1rem; margin: 1.2rem 0; }
.lead p { margin: .2rem 0; max-width: none; }
.lead p:first-child { font-size: 1.1rem; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; margin: .4rem 0; }
th, td { padding: .35rem .8rem .35rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }
th { vertical-align: bottom; font-weight: 600; white-space: normal; min-width: 5.5rem; line-height: 1.25; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 7rem; max-width: 16rem;
  position: sticky; left: 0; background: var(--paper); }
tr.best td { font-weight: 700; }
.mark { color: var(--paper); background: var(--blue); border-radius: 3px; padding: 0 .4em; font-size: .75rem;
  font-weight: 600; margin-left: .5em; }
.grid { display: grid; gap: 20px 24px; grid-template-columns: repeat(auto-fill, minmax(min(290px, 100%), 1fr)); }
figure { margin: 0; min-width: 0; }
svg { display: block; width: 100%; height: auto; color: var(--ink); }
pre { background: var(--soft); padding: .7rem .9rem; overflow-x: auto; font-size: .82rem; line-height: 1.45;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0 1rem; }
@media (max-width: 600px) { body { padding: 16px 14px 48px; } h1 { font-size: 1.4rem; }
  .lead p:first-child { font-size: 1rem; } th:first-child, td:first-child { max-width: 8.5rem; } }
details summary { cursor: pointer; }
.failed { border-left: 4px solid var(--orange); background: var(--soft); padding: .6rem 1rem; margin: 1rem 0; }
"""


def page(outcome: Outcome, sections: Sequence[tuple[str, str, list[Picture]]]) -> str:
    """Returns the page's text.

    Args:
        outcome: What is told.
        sections: Titles, texts and pictures.
    """
    study = outcome.study
    parts = [
        f"<h1>{_text(study.title)}</h1>",
        f"<p>{_text(study.question)}</p>",
        f'<p class="quiet">{_text(_made_of(outcome))}</p>',
        '<div class="lead">' + "".join(f"<p>{_text(each)}</p>" for each in headline(outcome)) + "</div>",
        _failures(outcome),
        _results(outcome),
        _decomposition(outcome),
        _reload(outcome),
        *(_section(*each) for each in sections),
        _made_by(outcome),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(study.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(each for each in parts if each)
        + "\n</body>\n</html>\n"
    )


def _text(value: str) -> str:
    return html.escape(value)


def _made_of(outcome: Outcome) -> str:
    study, ended = outcome.study, len(outcome.results)
    runs = len(study.variants) * len(study.seeds)
    form = "short form (--quick)" if outcome.quick else "full form"
    seeds = "1 seed" if len(study.seeds) == 1 else f"{len(study.seeds)} seeds"
    many = f"{len(study.variants)} variants × {seeds}"
    return f"{many}, {form}; {ended} of {runs} runs ended; {duration(outcome.seconds)} of computing."


def _failures(outcome: Outcome) -> str:
    if not outcome.failures:
        return ""
    lines = "".join(
        f"<li>{_text(each.variant)}, seed {each.seed}: {_text(each.message)}</li>" for each in outcome.failures
    )
    many = "1 run" if len(outcome.failures) == 1 else f"{len(outcome.failures)} runs"
    return f'<div class="failed"><p>{many} failed:</p><ul>{lines}</ul></div>'


def _results(outcome: Outcome) -> str:
    study, metric = outcome.study, outcome.study.metric
    found, compared, best = summaries(outcome, metric), against_baseline(outcome, metric), best_of(outcome, metric)
    if not found:
        return ""
    many = len(study.seeds) > 1
    gap, extra = gaps(outcome), _extra_columns(outcome)
    points = ", points" if is_accuracy(metric) else ""
    head = ["variant", readable(metric) + (", mean ± standard error" if many else "")]
    head += [f"difference from {study.baseline}{points}", "p"] * bool(compared)
    head += [f"gap to training{points}"] * bool(gap) + list(extra) + ["time a run"]
    rows = []
    for variant, each in found.items():
        is_best = best is not None and best.is_certain and best.variant == variant
        name = _text(variant) + ('<span class="mark">best</span>' if is_best else "")
        cells = [name, number(metric, each.mean, each.error)]
        if len(each.values) < len(study.seeds):
            cells[0] += f' <span class="quiet">({len(each.values)} of {len(study.seeds)} seeds)</span>'
        if compared:
            other = compared.get(variant)
            cells += ["", ""] if other is None else [difference_in_words(metric, other), p_value(other.p)]
        if gap:
            cells.append(_gap(metric, gap[variant].mean) if variant in gap else "–")
        cells += [values.get(variant, "–") for values in extra.values()]
        cells.append(duration(mean_and_error([run.seconds for run in outcome.results if run.variant == variant])[0]))
        rows.append((cells, is_best))
    return f"<h2>Results</h2>\n{_table(head, rows)}\n<p class='quiet'>{_text(_how_judged(outcome))}</p>"


def _gap(metric: str, gap: float) -> str:
    return f"{100 * gap:.2f}" if is_accuracy(metric) else f"{gap:.3g}"


def _extra_columns(outcome: Outcome) -> dict[str, dict[str, str]]:
    """Further columns by title, each by variant: what runs have collected, and other metrics of the test part."""
    columns: dict[str, dict[str, str]] = {}
    study = outcome.study
    in_table = {"bias_squared", "variance", "noise", "sum"} if collected(outcome, "decomposition") else set()
    for metric in dict.fromkeys(name for each in outcome.results for name in each.metrics if name not in in_table):
        is_other = metric.startswith("test/") or "/" not in metric or not study.metric.startswith("test/")
        if metric == study.metric or not is_other:
            continue
        found = summaries(outcome, metric)
        columns[readable(metric)] = {name: number(metric, each.mean) for name, each in found.items()}
    weights = collected(outcome, "weights")
    if weights:
        zeros = {name: mean_and_error([each["zero_fraction"] for each in runs])[0] for name, runs in weights.items()}
        columns["exact zeros"] = {name: f"{100 * share:.3g} %" for name, share in zeros.items()}
    return columns


def _how_judged(outcome: Outcome) -> str:
    study = outcome.study
    if len(study.seeds) < 2:
        return "With one seed nothing can be told of chance."
    is_fit = any(each.curves for each in outcome.results)
    once = (
        " The test part was looked at once a run, with the weights that were best on the validation part."
        if is_fit and study.metric.startswith("test/")
        else ""
    )
    return (
        "Standard errors are over seeds, which pair the variants: the same seed gives each the same data and the same "
        "random numbers. p is that of a two-sided paired t-test, corrected after Holm for the number of comparisons "
        f"with {study.baseline}. A variant is marked as best only where it differs from every other one with "
        f"p < {SIGNIFICANT} after the same correction.{once}"
    )


def _decomposition(outcome: Outcome) -> str:
    found = parts_of(outcome)
    if found is None:
        return ""
    head = ["variant", *found.names, *found.notes, "sum", f"measured {found.label}"]
    rows = []
    for index, variant in enumerate(found.variants):
        parts = [values[index] for values in found.stacked.values()]
        error = found.errors[index]
        measured = f"{found.measured[index]:.4f}" + ("" if math.isnan(error) else f" ± {error:.4f}")
        cells = [_text(variant), *(f"{each:.4f}" for each in parts)]
        cells += [*(f"{values[index]:.4f}" for values in found.notes.values()), f"{sum(parts):.4f}", measured]
        rows.append((cells, False))
    note = (
        "The answer that most of a variant's models give is the main prediction: bias is how often it is wrong, "
        "variance how often models differ from it where it is right. Where it is wrong, variance undoes errors, and "
        "less of the bias stays (Domingos, 2000)."
        if found.notes
        else "Bias², variance and noise are means over points; their sum is the expected error."
    )
    return f"<h2>Bias and variance</h2>\n{_table(head, rows)}\n<p class='quiet'>{note}</p>"


def _reload(outcome: Outcome) -> str:
    found = collected(outcome, "reload")
    if not found:
        return ""
    rows = []
    for variant, runs in found.items():
        same = f"{sum(bool(each['same_classes']) for each in runs)} of {len(runs)}"
        difference = f"{max(each['largest_difference'] for each in runs):.2g}"
        rows.append(([_text(variant), str(max(each["samples"] for each in runs)), difference, same], False))
    head = ["variant", "samples", "largest difference of a probability", "models that predict the same classes"]
    title = "Saved, and loaded in a new process"
    return f"<h2>{title}</h2>\n{_table(head, rows)}"


def _table(head: Iterable[str], rows: Iterable[tuple[list[str], bool]]) -> str:
    titles = "".join(f"<th>{_text(each)}</th>" for each in head)
    lines = "\n".join(
        f"<tr{' class=' + chr(34) + 'best' + chr(34) if is_best else ''}>"
        + "".join(f"<td>{each}</td>" for each in cells)
        + "</tr>"
        for cells, is_best in rows
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'


def _section(title: str, text: str, pictures: list[Picture]) -> str:
    figures = "\n".join(
        f'<figure style="max-width: {each.width}px">'
        + (f"<h3>{_text(each.title)}</h3>" if each.title else "")
        + f"{each.svg}</figure>"
        for each in pictures
    )
    body = figures if len(pictures) == 1 else f'<div class="grid">{figures}</div>'
    return f'<h2>{_text(title)}</h2>\n<p class="quiet">{_text(text)}</p>\n{body}'


def _made_by(outcome: Outcome) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in outcome.versions.items())
    parts = ["<h2>How to make this again</h2>", f"<pre>{_text(outcome.command)}</pre>" if outcome.command else ""]
    if outcome.commands:
        seed = outcome.study.seeds[0] if outcome.study.seeds else 0
        listed = "\n".join(f"# {name}\n{command}" for name, command in outcome.commands.items())
        parts.append(f"<details><summary>Each variant alone, seed {seed}</summary><pre>{_text(listed)}</pre></details>")
    parts.append(f'<p class="quiet">{_text(versions)}. Every run is a line of results.csv beside this page.</p>')
    return "\n".join(each for each in parts if each)
