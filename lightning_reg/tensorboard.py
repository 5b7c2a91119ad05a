"""The one place that writes anything but scalars to a logger."""

from collections.abc import Mapping

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL.Image import Image

__all__ = ["log_final_metrics", "takes_pictures", "write_picture"]


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


def takes_pictures(logger: Logger) -> bool:
    """Whether :func:`write_picture` can write to a logger: TensorBoard, Weights & Biases, MLflow.

    Args:
        logger: Of a trainer.
    """
    return isinstance(logger, (TensorBoardLogger, WandbLogger, MLFlowLogger))


def write_picture(trainer: Trainer, tag: str, picture: Image) -> None:
    """Writes a picture to every logger that takes one, at the trainer's step.

    Args:
        trainer: Whose loggers are written to, by rank 0.
        tag: What the picture is called.
        picture: RGB.
    """
    import numpy as np

    step = trainer.global_step
    for logger in trainer.loggers if trainer.is_global_zero else []:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, np.asarray(picture), step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(tag, [picture], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, picture, artifact_file=f"{tag}/{step}.png")
