"""Initialization of whole modules: by name, by the activation after a layer, and by a batch (LSUV)."""

from lightning_reg.init.initialization import (
    INITIALIZATIONS,
    Initializer,
    VarianceScaling,
    initialize_,
    scheme_for_activation,
    zero_residual_gamma_,
)
from lightning_reg.init.lsuv import LSUVResult, activation_scale, lsuv_

__all__ = [
    "INITIALIZATIONS",
    "Initializer",
    "LSUVResult",
    "VarianceScaling",
    "activation_scale",
    "initialize_",
    "lsuv_",
    "scheme_for_activation",
    "zero_residual_gamma_",
]
