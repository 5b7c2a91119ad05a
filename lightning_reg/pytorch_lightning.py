"""The early stopping for projects that import ``pytorch_lightning``; all other callbacks serve both packages.

Lightning finds early stopping by its own class, and the two packages have a class each.
"""

from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import EarlyStopping

from lightning_reg.callbacks.run import best_weights_early_stopping as ours
from lightning_reg.core.lightning import twin

__all__ = ["BestWeightsEarlyStopping"]

if TYPE_CHECKING:
    from lightning_reg.callbacks.run.best_weights_early_stopping import BestWeightsEarlyStopping
else:
    BestWeightsEarlyStopping = type(
        "BestWeightsEarlyStopping",
        (ours.RestoresBestWeights, twin(EarlyStopping, "pytorch_lightning")),
        {"__doc__": ours.BestWeightsEarlyStopping.__doc__, "__module__": __name__},
    )
