"""The HTML page: a template filled with the outcome of a study; it is self-contained."""

from collections.abc import Sequence
from typing import Any

from lightning_reg.studies.outcome import Outcome
from lightning_reg.studies.report.charts import Section
from lightning_reg.studies.report.figures import line_style
from lightning_reg.studies.report.tables import tables
from lightning_reg.studies.report.words import headline
from lightning_reg.text import counted, duration

__all__ = ["page", "rendered"]

_HERE = "lightning_reg.studies.report"


def page(outcome: Outcome, sections: Sequence[Section]) -> str:
    """Returns the page's HTML, including style sheet, script and charts."""
    return rendered(
        "page.html",
        title=outcome.study.title,
        question=outcome.study.question,
        outcome=outcome,
        extent=_extent(outcome),
        headline=headline(outcome),
        tables=list(tables(outcome)),
        sections=sections,
        variants=outcome.study.variants,
        beside="Every run is a line of results.csv beside this page.",
    )


def rendered(template: str, package: str = _HERE, **values: Any) -> str:
    """Renders a page as HTML.

    Args:
        template: File name of the template, which extends this package's ``base.html``.
        package: Package that contains the template.
        values: Variables of the template.
    """
    import jinja2

    loaders = [jinja2.PackageLoader(name, package_path="") for name in dict.fromkeys((package, _HERE))]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["line_style"] = line_style
    return environment.get_template(template).render(values)


def _extent(outcome: Outcome) -> str:
    study, ended = outcome.study, len(outcome.results)
    runs = len(study.variants) * len(study.seeds)
    form = "short form (--quick)" if outcome.quick else "full form"
    many = f"{counted(len(study.variants), 'variant')} × {counted(len(study.seeds), 'seed')}"
    return f"{many}, {form}; {ended} of {counted(runs, 'run')} ended; {duration(outcome.seconds)} of computing."
