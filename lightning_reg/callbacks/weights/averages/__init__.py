"""Averages of weights: what they hold, how they are put in and out, and what is recomputed for them."""
