"""Safe holds on somebody else's module and trainer: which parameters, which gradient, which random numbers."""
