"""Time of a training step with the Trainer."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.timing import quiet, wait
from benchmarks.workloads import Endless

__all__ = ["WARM_UP", "step_time"]

WARM_UP = 5
"""Steps at the beginning of a fit that aren't timed."""


class _Stopwatch(Callback):
    """Measures the time from the end of the warm-up to the end of the last step."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.started = self.stopped = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == WARM_UP:
            wait(self.device)
            self.started = time.perf_counter()
        elif batch_idx == int(trainer.num_training_batches) - 1:
            wait(self.device)
            self.stopped = time.perf_counter()


def step_time(
    module: LightningModule,
    batch: tuple[Tensor, Tensor],
    *,
    steps: int,
    device: str,
    callbacks: Sequence[Callback] = (),
    logger: Logger | None = None,
) -> float:
    """Returns the mean seconds per step of a fit.

    Args:
        module: Module to train.
        batch: Inputs and targets of every step.
        steps: Number of steps of the fit, including the warm-up.
        device: Device of torch.
        callbacks: Callbacks of the trainer.
        logger: Logger of the trainer, or None.
    """
    watch = _Stopwatch(device)
    inputs, targets = (part.to(device) for part in batch)
    with quiet():
        trainer = Trainer(
            accelerator="cpu" if torch.device(device).type == "cpu" else "gpu",
            devices=1,
            max_epochs=1,
            limit_train_batches=steps,
            limit_val_batches=0,
            callbacks=[*callbacks, watch],
            logger=False if logger is None else logger,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(Endless((inputs, targets)), batch_size=None))
    return (watch.stopped - watch.started) / (steps - 1 - WARM_UP)
