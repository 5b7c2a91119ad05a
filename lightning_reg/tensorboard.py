"""The one place that writes anything but scalars to a logger."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import Tensor

__all__ = ["log_final_metrics", "log_layout", "log_picture", "log_text"]


def log_final_metrics(
    trainer: Trainer,
    pl_module: LightningModule,
    data: LightningDataModule | None,
    metrics: Mapping[str, float],
    techniques: Mapping[str, Any] | None = None,
) -> None:
    """Writes a run's final metrics beside its hyperparameters, so that TensorBoard's HParams page compares runs.

    Does nothing for other loggers, which keep hyperparameters in their own way.

    Args:
        trainer: Whose loggers are written to.
        pl_module: Whose hyperparameters the run had.
        data: Whose hyperparameters the run had, too.
        metrics: By tag.
        techniques: Settings of callbacks, by name; ``lightning_reg.attach.inventory.technique_settings`` finds them.
    """
    hyperparameters = {**(data.hparams if data is not None else {}), **pl_module.hparams, **(techniques or {})}
    settings = {name: value for name, value in hyperparameters.items() if not name.startswith("_")}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(settings, dict(metrics), step=trainer.global_step)
            logger.save()


def log_text(trainer: Trainer, tag: str, text: str) -> None:
    """Writes text to every logger that takes some.

    Args:
        trainer: Whose loggers are written to, by the first process alone.
        tag: Of the text.
        text: As Markdown.
    """
    for logger in _loggers(trainer):
        experiment = logger.experiment
        if isinstance(logger, TensorBoardLogger):
            experiment.add_text(tag, text, trainer.global_step)
        elif callable(getattr(logger, "log_text", None)):  # Weights & Biases, as a table of one cell
            logger.log_text(key=tag, columns=["text"], data=[[text]])
        elif callable(getattr(experiment, "log_text", None)):
            run_id = getattr(logger, "run_id", None)
            if run_id is None:  # Comet
                experiment.log_text(text, metadata={"tag": tag})
            else:  # MLflow, as a file
                experiment.log_text(run_id, text, f"{tag}.md")


def log_picture(trainer: Trainer, tag: str, picture: Tensor, step: int) -> None:
    """Writes a picture to every logger that takes some.

    Args:
        trainer: Whose loggers are written to, by the first process alone.
        tag: Of the picture.
        picture: (H, W, 3), uint8.
        step: Of the axis.
    """
    if picture.dtype != torch.uint8:
        raise TypeError(f"picture must be of bytes, but is of {picture.dtype}")
    pixels = picture.cpu().numpy()
    for logger in _loggers(trainer):
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, pixels, step, dataformats="HWC")
        elif callable(getattr(logger, "log_image", None)):  # Weights & Biases
            logger.log_image(key=tag, images=[pixels])
        elif callable(getattr(logger.experiment, "log_image", None)):
            run_id = getattr(logger, "run_id", None)
            if run_id is None:  # Comet
                logger.experiment.log_image(pixels, name=tag, step=step)
            else:  # MLflow, as a file
                logger.experiment.log_image(run_id, pixels, f"{tag}/{step}.png")


def log_layout(trainer: Trainer, charts: Mapping[str, Mapping[str, list[str]]]) -> None:
    """Tells TensorBoard's page of custom scalars which curves to draw into one chart.

    Args:
        trainer: Whose TensorBoard loggers are written to, by the first process alone. A logger keeps one layout.
        charts: By category, then by title: regular expressions over tags. A chart without a curve is left empty.
    """
    layout = {
        category: {title: ["Multiline", tags] for title, tags in within.items()} for category, within in charts.items()
    }
    for logger in _loggers(trainer):
        if isinstance(logger, TensorBoardLogger) and layout:
            logger.experiment.add_custom_scalars(layout)


def _loggers(trainer: Trainer) -> list[Any]:
    """Returns the loggers to write to; on other processes than the first their experiments are dummies."""
    loggers: list[Logger] = trainer.loggers if trainer.is_global_zero else []
    return loggers
