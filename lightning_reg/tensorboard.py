"""The one place that writes anything but scalars to a logger."""

from collections.abc import Mapping

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

__all__ = ["log_final_metrics"]


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
