"""Dropout and normalization as they are derived on paper, forward and backward.

To be read, and to compare with in tests; clear before fast. Models use torch's kernels.
"""

from lightning_reg.functional.reference.batch_norm import batch_norm
from lightning_reg.functional.reference.dropout import inverted_dropout, original_dropout
from lightning_reg.functional.reference.layer_norm import layer_norm
from lightning_reg.functional.reference.rms_norm import rms_norm

__all__ = ["batch_norm", "inverted_dropout", "layer_norm", "original_dropout", "rms_norm"]
