"""The table at the end of a fit."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_reg.cli.runs import run_folders
from lightning_reg.data import ImageData
from lightning_reg.tensorboard import log_final_metrics

__all__ = ["summarize"]

Metrics = dict[str, float]


def summarize(trainer: Trainer, model: LightningModule, data: LightningDataModule | None) -> None:
    """Measures the best weights on every split and prints the table.

    All splits are measured alike: in evaluation mode, on clean pictures. The test part is looked at once, here.

    Args:
        trainer: That has just fitted.
        model: That was fitted.
        data: That it was fitted to.
    """
    checkpoint = trainer.checkpoint_callback
    best_path = str(getattr(checkpoint, "best_model_path", ""))
    epochs = trainer.current_epoch
    stopped_early = trainer.should_stop and epochs < (trainer.max_epochs or 0)
    best_epoch = None
    if best_path:
        state = torch.load(best_path, map_location="cpu", weights_only=True, mmap=True)
        best_epoch = state["epoch"]
    results = _evaluate(trainer, model, data, best_path or None) if data is not None else {}
    if trainer.is_global_zero:
        rows = [
            ("epochs run", f"{epochs}{', stopped early' if stopped_early else ''}"),
            ("best epoch", "unknown (no checkpoint)" if best_epoch is None else f"{best_epoch}, counted from 0"),
            ("logs", str(trainer.log_dir or "none")),
            ("checkpoint", (best_path and str(_relative(best_path))) or "none"),
        ]
        if trainer.log_dir:
            rows.append(("TensorBoard", f"tensorboard --logdir {_relative(run_folders(trainer))}"))
        print("\n" + "\n".join([*_metric_lines(results), "", *(f"{name:<14}{value}" for name, value in rows)]))
    final = {f"final/{split}_{name}": value for split, metrics in results.items() for name, value in metrics.items()}
    log_final_metrics(trainer, model, final)


def _evaluate(
    trainer: Trainer, model: LightningModule, data: LightningDataModule, best_path: str | None
) -> dict[str, Metrics]:
    results: dict[str, Metrics] = {}
    with _quiet():
        with _without_loggers(trainer):  # these are no points on the validation curve
            validated = trainer.validate(model, datamodule=data, ckpt_path=best_path, verbose=False)
            train = TrainingPart(data) if isinstance(data, ImageData) else None
            trained = trainer.validate(model, datamodule=train, verbose=False) if train else None
        if trained:
            results["train"] = _short_names(trained[0])
        results["validation"] = _short_names(validated[0])
        has_test = not isinstance(data, ImageData) or data.evaluation_dataloader("test") is not None
        if has_test:
            results["test"] = _short_names(trainer.test(model, datamodule=data, verbose=False)[0])
    return results


class TrainingPart(LightningDataModule):
    """The training pictures of a data module as validation data: clean and in order.

    Args:
        data: Whose training pictures.
    """

    def __init__(self, data: ImageData) -> None:
        super().__init__()
        self.data = data

    @override
    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]] | None:
        return self.data.evaluation_dataloader("train")

    @override
    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        return self.data.on_after_batch_transfer(batch, dataloader_idx)


def _short_names(metrics: Mapping[str, float]) -> Metrics:
    return {name.rpartition("/")[2]: float(value) for name, value in metrics.items()}


def _metric_lines(results: dict[str, Metrics]) -> list[str]:
    if not results:
        return []
    names = [name for name in results["validation"] if all(name in metrics for metrics in results.values())]
    names.sort(key=lambda name: name != "accuracy")  # what people look at first
    header = f"{'':<14}" + "".join(f"{split:>12}" for split in results)
    has_gap = "train" in results
    lines = [header + (f"{'gap':>12}" if has_gap else "")]
    for name in names:
        values = [metrics[name] for metrics in results.values()]
        if has_gap:
            gap = results["train"][name] - results["validation"][name]
            values.append(-gap if name == "loss" else gap)
        lines.append(f"{name:<14}" + "".join(f"{_formatted(name, value):>12}" for value in values))
    if has_gap:
        lines.append("The generalization gap is how much worse the model does on validation than on training data.")
    return lines


def _formatted(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if name == "accuracy" else f"{value:.4f}"


def _relative(path: str | Path) -> Path:
    absolute = Path(path).absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute


@contextmanager
def _without_loggers(trainer: Trainer) -> Iterator[None]:
    loggers, trainer.loggers = trainer.loggers, []
    try:
        yield
    finally:
        trainer.loggers = loggers


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
