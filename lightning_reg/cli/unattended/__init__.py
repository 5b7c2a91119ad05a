"""Fits that nobody watches: the runs of studies and searches."""
