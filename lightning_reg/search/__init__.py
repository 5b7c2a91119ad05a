"""Which regularizers a network needs, and how strong: the space, the search, what it hands over."""

from lightning_reg.search.python import Found, SearchTrial, search

__all__ = ["Found", "SearchTrial", "search"]
