"""Trials of a search: proposal, storage and execution."""
