"""Measures for monitors and studies: activations, weights, learning curves, errors of several models."""
