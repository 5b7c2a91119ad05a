"""Report of a search as one self-contained HTML page."""

from lightning_reg.search.report.page import page

__all__ = ["page"]
