"""Unattended fits: the runs of studies and searches."""
