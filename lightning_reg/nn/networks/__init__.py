"""Whole networks, with pluggable normalization, dropout and initialization."""
