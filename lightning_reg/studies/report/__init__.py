"""Report of a study: a self-contained HTML page, a table of all runs, and charts."""

from lightning_reg.studies.report.figures import check_can_draw
from lightning_reg.studies.report.numbers import number
from lightning_reg.studies.report.words import headline
from lightning_reg.studies.report.writing import write_report

__all__ = ["check_can_draw", "headline", "number", "write_report"]
