"""Averages of weights: what they hold, how they are swapped in and out, and what is recomputed for them."""
