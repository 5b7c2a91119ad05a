"""Functions that a study can compute instead of training: from a seed and settings to numbers."""

from lightning_reg.studies.functions.batch_norm import batch_norm_backward
from lightning_reg.studies.functions.regression import ridge_regression

__all__ = ["batch_norm_backward", "ridge_regression"]
