"""Copies of modules and of their state, which leave the original unchanged."""
