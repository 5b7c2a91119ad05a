"""Predictions as a CSV file."""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer

from lightning_reg.data import ImageData
from lightning_reg.settings import SettingError

__all__ = ["write_predictions"]


def write_predictions(trainer: Trainer, datamodule: LightningDataModule | None, batches: list[Any] | None) -> None:
    """Writes the most likely class of every sample, and how likely it is, to ``predictions.csv`` in the run's folder.

    Args:
        trainer: Says where.
        datamodule: Names classes and samples, where it can.
        batches: Probabilities (N, C) of each batch.

    Raises:
        SettingError: If the model predicts something else.
    """
    if not batches or not all(_are_probabilities(batch) for batch in batches):
        raise SettingError("predict writes class probabilities (batch, classes), but the model returns something else")
    confidences, classes = torch.cat(batches).max(1)
    names: list[str] = [str(index) for index in range(len(classes))]
    labels: tuple[str, ...] | None = None
    if isinstance(datamodule, ImageData):
        names, labels = datamodule.sample_names("test")[: len(classes)], datamodule.classes
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", "class", "probability"])
        for name, index, confidence in zip(names, classes.tolist(), confidences.tolist(), strict=True):
            writer.writerow([name, labels[index] if labels else index, f"{confidence:.6f}"])
    print(f"{len(classes):,} predictions in {folder / 'predictions.csv'}")


def _are_probabilities(batch: Any) -> bool:
    if not isinstance(batch, torch.Tensor) or batch.ndim != 2:
        return False
    # Of a precision of 16 bits at the least: 2⁻⁸ of 1.
    return bool((batch >= 0).all() and ((batch.float().sum(1) - 1).abs() < 2**-7).all())
