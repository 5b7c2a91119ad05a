"""Reference implementations of dropout and normalization, forward and backward, as derived on paper.

They are for reading and for comparison in tests, and favor clarity over speed. Models use torch's kernels.
"""

from lightning_reg.functional.reference.batch_norm import batch_norm
from lightning_reg.functional.reference.dropout import inverted_dropout, original_dropout
from lightning_reg.functional.reference.layer_norm import layer_norm
from lightning_reg.functional.reference.rms_norm import rms_norm

__all__ = ["batch_norm", "inverted_dropout", "layer_norm", "original_dropout", "rms_norm"]
