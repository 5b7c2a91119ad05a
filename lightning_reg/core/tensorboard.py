"""The one module that logs what Lightning doesn't: images, text, histograms, many scalars at once."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lightning_reg.core.lightning import is_overridden, twins

__all__ = [
    "Histogram",
    "has_tensorboard",
    "log_final_metrics",
    "log_histograms",
    "log_image",
    "log_layout",
    "log_text",
    "takes_images",
    "write_scalars",
]


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
        trainer: Trainer whose loggers are written to.
        pl_module: Module whose hyperparameters are written.
        data: Data module whose hyperparameters are written, too, if there is one.
        techniques: Settings of callbacks by name, as ``lightning_reg.audit.inventory.technique_settings`` returns them.
    """
    hyperparameters = {**(data.hparams if data is not None else {}), **pl_module.hparams, **(techniques or {})}
    settings = {name: value for name, value in hyperparameters.items() if not name.startswith("_")}
    for logger in trainer.loggers:
        if _is_tensorboard(logger):
            logger.log_hyperparams(settings, dict(metrics), step=trainer.global_step)
            logger.save()


class Histogram(NamedTuple):
    """Counts of values in bins, with the sums that TensorBoard shows beside them.

    Attributes:
        counts: Number of values in each bin, (K,), on the CPU.
        edges: Edges of the bins, (K + 1,), ascending, on the CPU.
        total: Sum of all values.
        squares: Sum of all squared values.
    """

    counts: Tensor
    edges: Tensor
    total: float
    squares: float


def has_tensorboard(trainer: Trainer) -> bool:
    """Whether the trainer has a TensorBoard logger; else values that only TensorBoard shows needn't be computed."""
    return any(_is_tensorboard(logger) for logger in trainer.loggers)


def log_histograms(trainer: Trainer, histograms: Mapping[str, Histogram], step: int) -> None:
    """Writes histograms with given counts, all at once.

    Args:
        trainer: Trainer whose TensorBoard loggers are written to, by the first process only.
        histograms: Histograms by tag; those without a value are left out.
    """
    from torch.utils.tensorboard.summary import histogram_raw  # late: needed only with such a logger

    loggers = [logger for logger in _loggers(trainer) if _is_tensorboard(logger)]
    if not loggers:
        return
    written = []
    for tag, histogram in histograms.items():
        counts, edges = histogram.counts.tolist(), histogram.edges.tolist()
        filled = [index for index, count in enumerate(counts) if count]
        if filled:
            low, high = edges[filled[0]], edges[filled[-1] + 1]
            sums = sum(counts), histogram.total, histogram.squares
            made: Any = histogram_raw(tag, low, high, *sums, edges[1:], counts)  # type: ignore[no-untyped-call]
            written.append(made.value[0])
    if written:
        for logger in loggers:
            _write_event(logger, written, step)


def write_scalars(logger: Logger, values: Mapping[str, float], step: int) -> None:
    """Writes scalars to a logger, as its ``log_metrics`` does; to TensorBoard all at once.

    Args:
        logger: Logger of a trainer; it writes nothing on processes other than the first.
    """
    # A subclass of the user's may do more with them.
    is_plain = not is_overridden(logger, "log_metrics")
    if _is_tensorboard(logger) and is_plain and not logger._prefix:
        from tensorboard.compat.proto.summary_pb2 import Summary

        _write_event(logger, [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()], step)
    else:
        logger.log_metrics(dict(values), step=step)


@rank_zero_only
def _write_event(logger: TensorBoardLogger, values: Sequence[Any], step: int) -> None:
    """Writes values as one event: hundreds of events would each wait for the writing thread."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    logger.experiment._get_file_writer().add_summary(Summary(value=values), step)


def takes_images(logger: Logger) -> bool:
    """Whether :func:`log_image` can write to a logger: TensorBoard, Weights & Biases, MLflow, Comet."""
    if _is_tensorboard(logger) or callable(getattr(logger, "log_image", None)):
        return True
    return callable(getattr(getattr(logger, "experiment", None), "log_image", None))


def log_text(trainer: Trainer, tag: str, text: str) -> None:
    """Writes text to every logger that supports it.

    Args:
        trainer: Trainer whose loggers are written to, by the first process only.
    """
    for logger in _loggers(trainer):
        experiment: Any = getattr(logger, "experiment", None)  # a custom logger may have none
        if _is_tensorboard(logger):
            experiment.add_text(tag, text, trainer.global_step)
        elif callable(getattr(logger, "log_text", None)):  # Weights & Biases, as a table of one cell
            logger.log_text(key=tag, columns=["text"], data=[[text]])
        elif callable(getattr(experiment, "log_text", None)):
            run_id = getattr(logger, "run_id", None)
            if run_id is None:  # Comet
                experiment.log_text(text, metadata={"tag": tag})
            else:  # MLflow, as a file
                experiment.log_text(run_id, text, f"{tag}.md")


def log_image(trainer: Trainer, tag: str, image: Tensor, step: int) -> None:
    """Writes an image to every logger that supports it.

    Args:
        trainer: Trainer whose loggers are written to, by the first process only.
        image: Image (H, W, 3), uint8.
    """
    if image.dtype != torch.uint8:
        raise TypeError(f"image must be of bytes, but is of {image.dtype}")
    pixels = image.cpu().numpy()
    for logger in _loggers(trainer):
        if _is_tensorboard(logger):
            logger.experiment.add_image(tag, pixels, step, dataformats="HWC")
        elif callable(getattr(logger, "log_image", None)):  # Weights & Biases
            logger.log_image(key=tag, images=[pixels])
        elif callable(getattr(getattr(logger, "experiment", None), "log_image", None)):
            run_id = getattr(logger, "run_id", None)
            if run_id is None:  # Comet
                logger.experiment.log_image(pixels, name=tag, step=step)
            else:  # MLflow, as a file
                logger.experiment.log_image(run_id, pixels, f"{tag}/{step}.png")


def log_layout(trainer: Trainer, charts: Mapping[str, Mapping[str, list[str]]]) -> None:
    """Writes the layout of TensorBoard's custom scalars: which curves share a chart.

    Args:
        trainer: Trainer whose TensorBoard loggers are written to, by the first process only. A logger keeps one layout.
        charts: Regular expressions over tags, by category and by title. A chart without matching curves stays empty.
    """
    layout = {
        category: {title: ["Multiline", tags] for title, tags in within.items()} for category, within in charts.items()
    }
    for logger in _loggers(trainer):
        if _is_tensorboard(logger) and layout:
            logger.experiment.add_custom_scalars(layout)


def _is_tensorboard(logger: Any) -> TypeGuard[TensorBoardLogger]:
    return isinstance(logger, twins(TensorBoardLogger))


def _loggers(trainer: Trainer) -> list[Any]:
    """Returns the loggers to write to; none on processes other than the first, where experiments are dummies."""
    loggers: list[Logger] = trainer.loggers if trainer.is_global_zero else []
    return loggers
