"""A search as one HTML page that needs nothing but itself."""

from lightning_reg.search.report.page import page

__all__ = ["page"]
