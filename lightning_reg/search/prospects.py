"""What the audit would say of a run that hasn't begun."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightning_reg.audit.contradictions import contradictions
from lightning_reg.audit.inventory import take_inventory

__all__ = ["Prospect"]


@dataclass
class Prospect:
    """A run with all that the audit looks at, none of which has been begun.

    Attributes:
        module: That would be trained.
        callbacks: Of the trainer.
        datamodule: If there is one.
        trainer: Whose settings are those of the run.
    """

    module: LightningModule
    callbacks: Sequence[Callback]
    datamodule: Any
    trainer: Trainer
    optimizers: list[Optimizer] = field(init=False)

    def __post_init__(self) -> None:
        self.optimizers = _optimizers_of(self.module)

    def contradictions(self) -> dict[str, str]:
        """Returns what works against itself: what was found, with the reason and the remedy."""
        view = _View(list(self.callbacks), self.optimizers, self.datamodule, self.trainer)
        found = take_inventory(cast("Trainer", view), self.module)
        return {contradiction.what: str(contradiction) for contradiction in contradictions(found)}


class _View:
    """A trainer as it would be once the fit has begun: with optimizers."""

    train_dataloader = None

    def __init__(
        self, callbacks: list[Callback], optimizers: list[Optimizer], datamodule: Any, trainer: Trainer
    ) -> None:
        self.callbacks = callbacks
        self.optimizers = optimizers
        self.datamodule = datamodule
        self._trainer = trainer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


def _optimizers_of(module: LightningModule) -> list[Optimizer]:
    """Returns the optimizers that a module would have; none where it can't tell before it is trained."""
    with contextlib.suppress(Exception):  # somebody's own code, which may ask for all that a fit has
        return list(_found(module.configure_optimizers()))
    return []


def _found(given: Any) -> list[Optimizer]:
    if isinstance(given, Optimizer):
        return [given]
    if isinstance(given, dict):
        return _found(given.get("optimizer"))
    if isinstance(given, (list, tuple)):
        return [optimizer for entry in given for optimizer in _found(entry)]
    return []
