"""All targets of the training samples."""

from collections.abc import Sized
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_reg.settings import SettingError

__all__ = ["training_targets"]


def training_targets(trainer: Trainer) -> Tensor:
    """Returns the targets of all training samples, equal on every process.

    Our data modules have a method ``training_targets``; otherwise they are collected in a pass over the training
    loader.

    Args:
        trainer: Trainer of the fit that is about to start.

    Raises:
        SettingError: If the loader's length is unknown, or its batches aren't (inputs, targets).
    """
    known = getattr(trainer.datamodule, "training_targets", None)  # type: ignore[attr-defined]  # set outside the class
    if callable(known):
        targets: Tensor = known()
        return targets.to(trainer.strategy.root_device)
    loader: Any = trainer.train_dataloader
    try:
        has_end = isinstance(loader, Sized) and len(loader) > 0
    except TypeError:  # of an iterable dataset
        has_end = False
    if not has_end:
        raise SettingError(
            "the training loader must know its length where targets are standardized or classes weighed by them; set "
            "task.standardize to false, or task.class_weights to numbers"
        )
    collected = []
    with isolate_rng():
        for batch in loader:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
                raise SettingError(f"batches must be (inputs, targets), but are a {type(batch).__name__}")
            collected.append(batch[1])
    found = torch.cat(collected).to(trainer.strategy.root_device)
    gathered: Tensor = trainer.strategy.all_gather(found)
    return gathered.flatten(0, 1) if trainer.world_size > 1 else found
