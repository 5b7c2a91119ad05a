"""What a study shows: one page that needs no network, a table of all runs, and pictures."""

from lightning_reg.studies.report.writing import write_report

__all__ = ["write_report"]
