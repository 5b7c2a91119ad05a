"""The page itself: a template filled with what came of a study; it needs nothing but itself."""

from collections.abc import Sequence

from lightning_reg.studies.outcome import Outcome
from lightning_reg.studies.report.charts import Section
from lightning_reg.studies.report.figures import line_style
from lightning_reg.studies.report.tables import tables
from lightning_reg.studies.report.words import headline
from lightning_reg.text import duration

__all__ = ["page"]


def page(outcome: Outcome, sections: Sequence[Section]) -> str:
    """Returns the page's HTML, with style sheet, script and charts in it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        outcome=outcome,
        study=outcome.study,
        extent=_extent(outcome),
        headline=headline(outcome),
        failures=outcome.failures,
        tables=list(tables(outcome)),
        sections=sections,
        line_style=line_style,
    )


def _extent(outcome: Outcome) -> str:
    study, ended = outcome.study, len(outcome.results)
    runs = len(study.variants) * len(study.seeds)
    form = "short form (--quick)" if outcome.quick else "full form"
    seeds = "1 seed" if len(study.seeds) == 1 else f"{len(study.seeds)} seeds"
    many = f"{len(study.variants)} variants × {seeds}"
    return f"{many}, {form}; {ended} of {runs} runs ended; {duration(outcome.seconds)} of computing."
