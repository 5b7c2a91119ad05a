"""The one place that writes anything but scalars to a logger."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor

__all__ = [
    "Histogram",
    "has_tensorboard",
    "log_final_metrics",
    "log_histograms",
    "log_picture",
    "takes_pictures",
]


def log_final_metrics(
    trainer: Trainer, pl_module: LightningModule, data: LightningDataModule | None, metrics: Mapping[str, float]
) -> None:
    """Writes a run's final metrics beside its hyperparameters, so that TensorBoard's HParams page compares runs.

    Does nothing for other loggers, which keep hyperparameters in their own way.

    Args:
        trainer: Whose loggers are written to.
        pl_module: Whose hyperparameters the run had.
        data: Whose hyperparameters the run had, too.
        metrics: By tag.
    """
    hyperparameters = {**(data.hparams if data is not None else {}), **pl_module.hparams}
    settings = {name: value for name, value in hyperparameters.items() if not name.startswith("_")}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(settings, dict(metrics), step=trainer.global_step)
            logger.save()


class Histogram(NamedTuple):
    """Counts between borders, and what TensorBoard shows beside them.

    Attributes:
        counts: (K,), on the CPU.
        edges: (K + 1,), ascending, on the CPU.
        total: Sum of all values.
        squares: Sum of their squares.
    """

    counts: Tensor
    edges: Tensor
    total: float
    squares: float


def has_tensorboard(trainer: Trainer) -> bool:
    """Whether there is a TensorBoard to write to; else there is no need to compute what only it can show.

    Args:
        trainer: With its loggers.
    """
    return any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)


def log_histograms(trainer: Trainer, histograms: Mapping[str, Histogram], step: int) -> None:
    """Writes histograms that have been counted already.

    Args:
        trainer: Whose TensorBoard loggers are written to; on other processes than the first nothing is.
        histograms: By tag; those without a value are left out.
        step: Of the axis.
    """
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger):
            continue
        for tag, histogram in histograms.items():
            filled = histogram.counts.nonzero().flatten().tolist() if trainer.is_global_zero else []
            if filled:
                edges = histogram.edges.double()
                logger.experiment.add_histogram_raw(
                    tag,
                    min=float(edges[filled[0]]),
                    max=float(edges[filled[-1] + 1]),
                    num=float(histogram.counts.sum()),
                    sum=histogram.total,
                    sum_squares=histogram.squares,
                    bucket_limits=edges[1:].tolist(),
                    bucket_counts=histogram.counts.tolist(),
                    global_step=step,
                )


def takes_pictures(logger: Logger) -> bool:
    """Whether :func:`log_picture` can write to a logger: TensorBoard, Weights & Biases, MLflow.

    Args:
        logger: Of a trainer.
    """
    return isinstance(logger, (TensorBoardLogger, WandbLogger, MLFlowLogger))


def log_picture(trainer: Trainer, tag: str, picture: Tensor, step: int) -> None:
    """Writes a picture to every logger that takes one.

    Args:
        trainer: Whose loggers are written to, by rank 0.
        tag: Of the picture.
        picture: (H, W, 3), uint8.
        step: Of the axis.
    """
    if picture.dtype != torch.uint8:
        raise TypeError(f"picture must be of bytes, but is of {picture.dtype}")
    pixels = picture.numpy()
    for logger in trainer.loggers if trainer.is_global_zero else []:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, pixels, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(tag, [pixels], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, pixels, artifact_file=f"{tag}/{step}.png")
