"""Copies of modules and of what modules hold, which leave the original as it was."""
