"""Search for the regularizers that a network needs and their strengths: spaces, trials, results."""

from lightning_reg.search.python import Found, SearchTrial, search

__all__ = ["Found", "SearchTrial", "search"]
