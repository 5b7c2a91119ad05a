"""The table at the end of a fit."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_reg.audit.inventory import technique_settings
from lightning_reg.cli.results.advice import advice_lines, signs_in, signs_of, situation_of
from lightning_reg.cli.results.figures import write_figures
from lightning_reg.cli.runs import run_folders
from lightning_reg.core.lightning import callbacks_of, twins
from lightning_reg.core.messages import quiet, without_loggers
from lightning_reg.core.metric_names import is_accuracy, lower_is_better, short_names
from lightning_reg.core.tensorboard import log_final_metrics
from lightning_reg.data import InMemoryData
from lightning_reg.files import read_checkpoint
from lightning_reg.functional.measures.learning_curves import generalization_gap
from lightning_reg.settings import SettingError
from lightning_reg.text import table

__all__ = ["TrainingPart", "evaluate_splits", "metric_lines", "selected_checkpoint", "summarize"]

Metrics = dict[str, float]


def summarize(
    trainer: Trainer, model: LightningModule, data: LightningDataModule | None, *, weights_only: bool = True
) -> None:
    """Evaluates the best weights on every split and prints the table.

    All splits are evaluated the same way: in evaluation mode, on unaugmented samples. The test split is used only here.

    Args:
        trainer: Trainer that has just finished ``fit``.
        data: The data module it was trained on.
        weights_only: Whether to evaluate the weights in memory instead if the best checkpoint holds more than data.
    """
    best_path = selected_checkpoint(trainer)
    best_epoch = _epoch_of(best_path, weights_only=weights_only)
    epochs = trainer.current_epoch
    if best_path and not epochs:  # processes were forked, and the trainer of this one didn't count their epochs
        last_epoch = _epoch_of(str(Path(best_path).parent / "last.ckpt"), weights_only=weights_only)
        epochs = 0 if last_epoch is None else last_epoch + 1
    early = trainer.should_stop and epochs != trainer.max_epochs
    # Before loading the best checkpoint also loads the callbacks' state.
    reasons = [getattr(callback, "stopping_reason_message", None) for callback in callbacks_of(trainer)]
    log_dir = trainer.log_dir  # on every rank: they agree on it
    signs = signs_of(trainer)
    # There are no optimizers if processes were forked, because the trainer of this one hasn't trained.
    situation = situation_of(trainer, model, data) if trainer.optimizers else None
    measured_path = best_path
    if best_path and best_epoch is None:
        rank_zero_warn(f"{best_path} can't be loaded as data: what is measured are the weights in memory")
        measured_path = ""
    results = evaluate_splits(trainer, model, data, measured_path or None) if data is not None else {}
    if trainer.is_global_zero:
        rows = [
            ("epochs run", f"{epochs}{', stopped early' if early else ''}"),
            ("best epoch", "unknown (no checkpoint)" if best_epoch is None else f"{best_epoch}, counted from 0"),
            ("logs", str(log_dir) if log_dir and trainer.loggers else "none"),
            ("checkpoint", str(_relative(best_path)) if best_path else "none"),
        ]
        rows[1:1] = [("stopped by", reason.replace(" Signaling Trainer to stop.", "")) for reason in reasons if reason]
        if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            rows.append(("TensorBoard", f"tensorboard --logdir {_relative(run_folders(trainer))}"))
        print("\n" + "\n".join([*metric_lines(results), "", *table(rows)]))
        if situation is not None:
            advice = advice_lines(replace(situation, signs=signs_in(results) if signs is None else signs))
            print("\n".join(["", *advice] if advice else []), end="\n" if advice else "")
        write_figures(trainer, log_dir, results)
    final = {f"final/{split}_{name}": value for split, metrics in results.items() for name, value in metrics.items()}
    log_final_metrics(trainer, model, data, final, technique_settings(trainer))


def _epoch_of(path: str, *, weights_only: bool) -> int | None:
    if not Path(path).is_file():
        return None
    try:
        epoch: int = read_checkpoint("checkpoint", path, weights_only=weights_only)["epoch"]
    except SettingError:  # the checkpoint holds more than data; the results are reported all the same
        return None
    return epoch


def selected_checkpoint(trainer: Trainer) -> str:
    """Returns the path of the checkpoint that was best on validation; empty if there is none."""
    return str(getattr(trainer.checkpoint_callback, "best_model_path", ""))


def evaluate_splits(
    trainer: Trainer, model: LightningModule, data: LightningDataModule, best_path: str | None
) -> dict[str, Metrics]:
    """Evaluates every split that the module and its data provide, and leaves the evaluated weights in the module.

    Args:
        trainer: Trainer to evaluate with.
        data: Data module it was trained on.
        best_path: Path of the checkpoint whose weights are evaluated; the module's current weights if None.

    Returns:
        Metrics by split (train, validation, test), then by name without the split.
    """
    measured: dict[str, Any] = {}
    validates = is_overridden("validation_step", model)
    weights = iter([best_path])  # loaded by the first evaluation, and kept for the others
    with quiet(), _measuring_only(trainer):
        with without_loggers(trainer):  # these values don't belong on the validation curve
            if validates and isinstance(data, InMemoryData):
                part = TrainingPart(data)
                measured["train"] = trainer.validate(model, datamodule=part, ckpt_path=next(weights), verbose=False)
            if validates and is_overridden("val_dataloader", data):
                path = next(weights, None)
                measured["validation"] = trainer.validate(model, datamodule=data, ckpt_path=path, verbose=False)
        has_test = not isinstance(data, InMemoryData) or data.evaluation_dataloader("test") is not None
        if has_test and is_overridden("test_step", model) and is_overridden("test_dataloader", data):
            path = next(weights, None)
            measured["test"] = trainer.test(model, datamodule=data, ckpt_path=path, verbose=False)
    return {split: _short_names(metrics[0]) for split, metrics in measured.items() if metrics}


@contextmanager
def _measuring_only(trainer: Trainer) -> Iterator[None]:
    """Takes away BatchSizeFinder, which would look for a batch size in each evaluation, and profilers of the fit."""
    callbacks, profiler = trainer.callbacks, trainer.profiler  # type: ignore[attr-defined]  # set by connectors
    trainer.callbacks = [one for one in callbacks if not isinstance(one, twins(BatchSizeFinder))]  # type: ignore[attr-defined]
    trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        trainer.callbacks, trainer.profiler = callbacks, profiler  # type: ignore[attr-defined]


class TrainingPart(LightningDataModule):
    """The training samples of a data module as validation data: unaugmented and in order."""

    def __init__(self, data: InMemoryData) -> None:
        super().__init__()
        self.data = data

    @override
    def val_dataloader(self) -> DataLoader[Any] | None:
        return self.data.evaluation_dataloader("train")

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.data.trainer = self.trainer  # it has none if processes were forked
        return self.data.on_after_batch_transfer(batch, dataloader_idx)


def _short_names(metrics: Mapping[str, float]) -> Metrics:
    """Removes the split from metric names: ``val/loss`` and ``val_loss`` both become ``loss``."""
    return {short: float(metrics[name]) for name, short in short_names(metrics).items()}


def metric_lines(results: Mapping[str, Metrics]) -> list[str]:
    r"""Returns the table of metrics, one line per metric, with the gap between training and validation.

    Args:
        results: Metrics by split, then by name.

    >>> print("\n".join(metric_lines({"train": {"loss": 0.1}, "validation": {"loss": 0.3}})[:2]))
           train  validation     gap
    loss  0.1000      0.3000  0.2000
    """
    splits = [split for split in results if results[split]]
    if not splits:
        return []
    names = [name for name in results[splits[0]] if all(name in results[split] for split in splits)]
    names.sort(key=lambda name: name != "accuracy")  # accuracy comes first
    has_gap = {"train", "validation"} <= set(splits)
    rows = [["", *splits, *(["gap"] if has_gap else [])]]
    for name in names:
        values = [results[split][name] for split in splits]
        if has_gap:
            train, validation = results["train"][name], results["validation"][name]
            values.append(generalization_gap(train, validation, lower_is_better=lower_is_better(name)))
        rows.append([name, *(_formatted(name, value) for value in values)])
    lines = table(rows, right=range(1, len(rows[0])))
    if has_gap:
        lines.append("The generalization gap is how much worse the model does on validation than on training data.")
    return lines


def _formatted(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if is_accuracy(name) else f"{value:.4f}"


def _relative(path: str | Path) -> Path:
    absolute = Path(path).absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute
