"""Techniques that change weights after the optimizer's step."""
