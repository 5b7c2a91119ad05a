"""Techniques that change inputs and targets."""
