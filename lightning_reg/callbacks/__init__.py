"""Every technique that attaches to a Trainer: a folder a place of the training step, a technique a file."""

from lightning_reg.callbacks.gradient.l2_penalty import L2Penalty
from lightning_reg.callbacks.run.best_weights_early_stopping import BestWeightsEarlyStopping

__all__ = ["BestWeightsEarlyStopping", "L2Penalty"]
