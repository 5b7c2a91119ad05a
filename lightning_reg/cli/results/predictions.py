"""Predictions as a CSV file."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from lightning_reg.data import InMemoryData
from lightning_reg.models import Supervised
from lightning_reg.models.tasks import Prediction
from lightning_reg.settings import SettingError, check_count

__all__ = ["PredictionSettings", "use_samples", "write_predictions"]


@dataclass
class PredictionSettings:
    """Settings of ``predict``.

    Args:
        samples: Number of forward passes with dropout turned on; ``predictions.csv`` then has their mean, their
            standard deviation and, for classes, the entropy and the mutual information. If None, a single pass with
            dropout turned off.
    """

    samples: int | None = None


def use_samples(model: LightningModule, settings: PredictionSettings) -> None:
    """Applies the ``prediction`` settings to a model.

    Raises:
        SettingError: If ``samples`` isn't a positive number, or is set for a module that isn't one of ours.
    """
    if settings.samples is None:
        return
    check_count("prediction.samples", settings.samples)
    if not isinstance(model, Supervised):
        raise SettingError(
            f"prediction.samples must be left out for {type(model).__name__}, which has a predict_step of its own"
        )
    model.predict_samples = settings.samples


def write_predictions(trainer: Trainer, datamodule: LightningDataModule | None, batches: list[Any] | None) -> None:
    """Writes one line per sample to ``predictions.csv`` in the run's folder.

    The columns depend on the model's task: the most likely class and its probability, numbers, or a probability for
    each label, and the uncertainty where it is known. For third-party modules they are a class or a number.

    Args:
        trainer: Trainer that has the model and the run's folder.
        datamodule: Data module, which provides the names of classes and samples if it has them.
        batches: Outputs of ``predict_step``, one per batch: for third-party modules probabilities (N, C), or numbers
            (N,) or (N, 1) for regression.

    Raises:
        SettingError: If the outputs have another form.
    """
    classes = getattr(datamodule, "classes", None) if datamodule is not None else None
    model = trainer.lightning_module
    if isinstance(model, Supervised) and batches:
        columns = model.task.columns(_joined(batches), list(classes or ()))
    else:
        columns = _columns(batches or [], classes)
    count = len(next(iter(columns.values())))
    names: list[str] = [str(index) for index in range(count)]
    if isinstance(datamodule, InMemoryData):
        names = datamodule.sample_names("test")[:count]
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", *columns])
        writer.writerows(zip(names, *columns.values(), strict=True))
    print(f"{count:,} predictions in {folder / 'predictions.csv'}")


def _joined(batches: Sequence[Any]) -> Tensor | Prediction:
    """Returns the predictions of all batches as one."""
    if isinstance(batches[0], Tensor):
        return torch.cat(list(batches))
    parts = [torch.cat(list(part)) if part[0] is not None else None for part in zip(*batches, strict=True)]
    return Prediction(*parts)  # type: ignore[arg-type]  # the first two are never None


def _columns(batches: list[Any], classes: Sequence[str] | None) -> dict[str, list[Any]]:
    """Returns the columns after the sample's name, by their titles."""
    if classes is not None and not classes:
        if not batches or not all(_are_numbers(batch) for batch in batches):
            raise SettingError("predict writes a number a sample (batch,), but the model returns something else")
        return {"prediction": torch.cat([batch.flatten() for batch in batches]).tolist()}
    if not batches or not all(_are_probabilities(batch) for batch in batches):
        raise SettingError("predict writes class probabilities (batch, classes), but the model returns something else")
    confidences, likeliest = torch.cat(batches).max(1)
    labels = [classes[index] if classes else index for index in likeliest.tolist()]
    return {"class": labels, "probability": [f"{confidence:.6f}" for confidence in confidences.tolist()]}


def _are_numbers(batch: Any) -> bool:
    return isinstance(batch, torch.Tensor) and (batch.ndim == 1 or (batch.ndim == 2 and batch.shape[1] == 1))


def _are_probabilities(batch: Any) -> bool:
    if not isinstance(batch, torch.Tensor) or batch.ndim != 2:
        return False
    # The tolerance allows for bfloat16, whose relative precision is 2⁻⁸.
    return bool((batch >= 0).all() and ((batch.float().sum(1) - 1).abs() < 2**-7).all())
