"""Predictions as a CSV file."""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer

from lightning_reg.data import InMemoryData
from lightning_reg.settings import SettingError

__all__ = ["write_predictions"]


def write_predictions(trainer: Trainer, datamodule: LightningDataModule | None, batches: list[Any] | None) -> None:
    """Writes a line a sample to ``predictions.csv`` in the run's folder.

    It has the most likely class and how likely it is, or, for a table whose target is a number, that number.

    Args:
        trainer: Says where.
        datamodule: Names classes and samples, where it can.
        batches: Probabilities (N, C) of each batch; numbers (N,) or (N, 1) for regression.

    Raises:
        SettingError: If the model predicts something else.
    """
    header, columns = _columns(batches or [], datamodule)
    count = len(columns[0])
    names: list[str] = [str(index) for index in range(count)]
    if isinstance(datamodule, InMemoryData):
        names = datamodule.sample_names("test")[:count]
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", *header])
        writer.writerows(zip(names, *columns, strict=True))
    print(f"{count:,} predictions in {folder / 'predictions.csv'}")


def _columns(batches: list[Any], datamodule: LightningDataModule | None) -> tuple[list[str], list[list[Any]]]:
    """Returns what the columns beside the sample's name are called, and what is in them."""
    classes = datamodule.classes if isinstance(datamodule, InMemoryData) else None
    if classes == ():
        if not batches or not all(_are_numbers(batch) for batch in batches):
            raise SettingError("predict writes a number a sample (batch,), but the model returns something else")
        return ["prediction"], [torch.cat([batch.flatten() for batch in batches]).tolist()]
    if not batches or not all(_are_probabilities(batch) for batch in batches):
        raise SettingError("predict writes class probabilities (batch, classes), but the model returns something else")
    confidences, likeliest = torch.cat(batches).max(1)
    labels = [classes[index] if classes else index for index in likeliest.tolist()]
    return ["class", "probability"], [labels, [f"{confidence:.6f}" for confidence in confidences.tolist()]]


def _are_numbers(batch: Any) -> bool:
    return isinstance(batch, torch.Tensor) and (batch.ndim == 1 or (batch.ndim == 2 and batch.shape[1] == 1))


def _are_probabilities(batch: Any) -> bool:
    if not isinstance(batch, torch.Tensor) or batch.ndim != 2:
        return False
    # Of a precision of 16 bits at the least: 2⁻⁸ of 1.
    return bool((batch >= 0).all() and ((batch.float().sum(1) - 1).abs() < 2**-7).all())
