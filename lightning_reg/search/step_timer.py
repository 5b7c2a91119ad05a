"""Timing of training steps."""

import statistics
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

__all__ = ["StepTimer"]


class StepTimer(Callback):
    """Measures the mean duration of a training step, including data loading, in the median epoch."""

    def __init__(self) -> None:
        self._of_epochs: list[float] = []
        self._began = 0.0
        self._ended = 0.0
        self._batches = 0

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._ended = time.perf_counter()
        self._batches = 0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._ended = time.perf_counter()
        self._batches += 1

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._batches:
            self._of_epochs.append((self._ended - self._began) / self._batches)

    @property
    def seconds(self) -> float | None:
        """Duration of a training step in seconds; None before the end of the first epoch."""
        later = self._of_epochs[1:] or self._of_epochs  # the first epoch includes one-time setup
        return statistics.median(later) if later else None
