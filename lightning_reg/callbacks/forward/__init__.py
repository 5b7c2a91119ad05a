"""Techniques that act in the forward pass."""
