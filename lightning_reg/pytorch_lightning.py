"""Early stopping for projects that import ``pytorch_lightning``; all other callbacks work with both packages.

Lightning recognizes early stopping by its own class, which differs between the two packages. The class is created on
first access: two classes of one short name would be ambiguous on a command line that knows both.
"""

import functools
from typing import TYPE_CHECKING, Any

__all__ = ["BestWeightsEarlyStopping"]

if TYPE_CHECKING:
    from lightning_reg.callbacks import BestWeightsEarlyStopping


def __getattr__(name: str) -> Any:
    if name == "BestWeightsEarlyStopping":
        return _early_stopping()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _early_stopping() -> type:
    from lightning.pytorch.callbacks import EarlyStopping

    from lightning_reg.callbacks.run import best_weights_early_stopping as ours
    from lightning_reg.core.lightning import twin

    return type(
        "BestWeightsEarlyStopping",
        (ours.RestoresBestWeights, twin(EarlyStopping, "pytorch_lightning")),
        {"__doc__": ours.BestWeightsEarlyStopping.__doc__, "__module__": __name__},
    )
