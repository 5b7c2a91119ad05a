"""Activations and weights in use: random masks and noise, normalization."""
