"""The audit's warnings about a technique combined with others, obtained from runs that are created but not trained."""

from collections.abc import Sequence
from typing import Any

import figures
import generate
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from torch import nn

from lightning_reg import callbacks, transforms
from lightning_reg.core.technique import Technique
from lightning_reg.search.prospects import Prospect

__all__ = ["section"]


class _Run(LightningModule):
    def __init__(self, optimizer: type[torch.optim.Optimizer], label_smoothing: float = 0.0, **settings: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        self.label_smoothing = label_smoothing
        self._make = lambda: optimizer([layer.weight for layer in self.layers if hasattr(layer, "weight")], **settings)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._make()


def _runs() -> Sequence[tuple[LightningModule, list[Callback]]]:
    """Returns runs to which a technique is added, chosen for the audit's rules."""
    sgd = torch.optim.SGD
    beside: Sequence[Callback] = (
        EarlyStopping("val/loss"),
        StochasticWeightAveraging(swa_lrs=0.01),
        callbacks.L2Penalty(weight=1e-4),
        callbacks.UnitNorm(),
        callbacks.SnapshotEnsemble(cycles=5),
        callbacks.ExponentialMovingAverage(decay=0.99),
    )
    return [
        (_Run(torch.optim.Adam), []),
        (_Run(sgd, weight_decay=0.1), []),
        (_Run(sgd, label_smoothing=0.1), []),
        *((_Run(sgd), [callback]) for callback in beside),
    ]


def _instance(kind: type[Technique]) -> Technique:
    """Returns a technique, created as in its doctest."""
    names = {**{name: getattr(callbacks, name) for name in callbacks.__all__}, **vars(transforms)}
    made: Technique = eval(generate.example(kind).strip("`"), names)
    return made


def section(kind: type[Technique]) -> list[str]:
    """Returns the section of the audit's warnings for a technique's page as Markdown; empty if there are none.

    Args:
        kind: Class of the technique.
    """
    found: dict[str, str] = {}
    with figures.undisturbed():
        trainer = Trainer(accelerator="cpu", logger=False, max_epochs=100, enable_checkpointing=False)
        for module, beside in _runs():
            found |= Prospect(module, [*beside, _instance(kind)], None, trainer).contradictions()
    lines = [f"- {text}" for what, text in found.items() if kind.__name__ in what]
    return ["\n".join(["## What the audit warns of", "", *lines])] if lines else []
