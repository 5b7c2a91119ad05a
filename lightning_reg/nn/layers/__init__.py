"""Layers: thin modules over :mod:`lightning_reg.functional`."""
