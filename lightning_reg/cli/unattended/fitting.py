"""One run of a study: the same as ``fit`` with the same arguments, without output."""

import contextlib
import gc
import io
import json
import logging
import multiprocessing
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback
from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks import GeneralizationGap
from lightning_reg.cli.command import RegularizationCLI
from lightning_reg.cli.parser import BriefParser
from lightning_reg.cli.results.summary import evaluate_splits, selected_checkpoint
from lightning_reg.data import InMemoryData
from lightning_reg.settings import SettingError
from lightning_reg.studies.collectors import (
    ActivationRecorder,
    LearningCurves,
    curves_of,
    predictions_of,
    reload_of,
    weights_of,
)
from lightning_reg.studies.runs import Measured, Run

__all__ = [
    "RaisingParser",
    "UnparsableError",
    "all_settings",
    "content_of",
    "fit",
    "metric_names",
    "resolve",
    "silence",
]

# Settings that don't affect results: where a run writes, and what it displays.
_NO_CONTENT = {
    "trainer": ("logger", "default_root_dir", "enable_progress_bar", "enable_model_summary", "devices"),
    "checkpoint": ("dirpath",),
}


class UnparsableError(SystemExit):
    """Aborts parsing; the parser would treat any other exception as a type mismatch and try the next type."""


class RaisingParser(BriefParser):
    """A parser that raises an exception instead of ending the process."""

    @override
    def refuse(self, sentence: str) -> NoReturn:
        """Raises an :class:`UnparsableError` with the error message."""
        raise UnparsableError(sentence)


class _Resolved(RegularizationCLI):
    """Parses the arguments without instantiating anything."""

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(args, parser_class=RaisingParser)

    @override
    def _set_seed(self) -> None:
        pass

    @override
    def instantiate_classes(self) -> None:
        pass

    @override
    def after_instantiate_classes(self) -> None:
        pass

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        pass


def all_settings(command: Sequence[str], *, unset: bool = True) -> dict[str, Any]:
    """Returns all settings of a command, including defaults, as plain values.

    Args:
        command: Words after ``fit`` on the command line.
        unset: Whether to include settings that are None.

    Raises:
        SettingError: If the command can't be parsed, or ``trainer.devices`` is neither 1 nor ``auto``.
    """
    try:
        cli = _Resolved(["fit", *command])
    except UnparsableError as error:
        raise SettingError(str(error)) from error
    text = cli.parser.dump(cli.config, format="json", skip_validation=True, skip_unset=not unset)
    settings: dict[str, Any] = json.loads(text)["fit"]
    devices = settings["trainer"].get("devices", "auto")
    if str(devices) not in ("auto", "1"):
        raise SettingError(
            f"trainer.devices must be 1 in a study, whose runs can be spread by --jobs, but is {devices}"
        )
    return settings


def content_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings without those that don't affect results.

    Args:
        settings: Settings as returned by :func:`all_settings`.
    """
    kept = deepcopy(dict(settings))
    for section, names in _NO_CONTENT.items():
        for name in names:
            kept.get(section, {}).pop(name, None)
    return kept


def resolve(command: Sequence[str]) -> dict[str, Any]:
    """Returns all settings of a command that affect its results, as plain values.

    Args:
        command: Words after ``fit`` on the command line.

    Raises:
        SettingError: If the command can't be parsed.
    """
    return content_of(all_settings(command, unset=False))


class _Fit(RegularizationCLI):
    """Fits, and evaluates the selected weights.

    Args:
        args: Words after the script's name on the command line.
        collect: Names of results to keep in addition to metrics and curves.
    """

    keeps_last = False  # an interrupted run is restarted

    def __init__(self, args: Sequence[str], collect: Sequence[str]) -> None:
        self.collect = collect
        self.recorder = ActivationRecorder()
        self.gap: GeneralizationGap = LearningCurves()
        self.metrics: dict[str, float] = {}
        self.curves: dict[str, list[tuple[float, float]]] = {}
        super().__init__(args, parser_class=RaisingParser)

    @override
    def further_callbacks(self, callbacks: Sequence[Callback]) -> list[Callback]:
        own = next((callback for callback in callbacks if isinstance(callback, GeneralizationGap)), None)
        self.gap = own or self.gap
        return [*([] if own else [self.gap]), *([self.recorder] if "activations" in self.collect else [])]

    @override
    def after_fit(self) -> None:
        self.curves = curves_of(self.gap)  # before loading the best checkpoint also loads the callbacks' state
        if self.datamodule is None:
            return
        best = selected_checkpoint(self.trainer) or None
        splits = evaluate_splits(self.trainer, self.model, self.datamodule, best)
        self.metrics = {f"{split}/{name}": value for split, part in splits.items() for name, value in part.items()}


class _Predict(RegularizationCLI):
    """Predicts the test split and keeps the predictions."""

    @override
    def predict(self, **settings: Any) -> None:
        batches = self.trainer.predict(**{**settings, "return_predictions": True})
        self.predictions = _joined(batches)


def _joined(batches: Any) -> Tensor:
    if not batches or not all(isinstance(batch, Tensor) for batch in batches):
        raise SettingError("collect must leave out reload and predictions where predict_step returns no tensor")
    return torch.cat(batches)


def fit(run: Run, folder: Path) -> Measured:
    """Trains, selects on validation, and evaluates the selected weights once on every split.

    Args:
        run: The run, with the words after ``fit`` as its command.
        folder: Folder of the run; its checkpoints are deleted at the end.

    Raises:
        Exception: Any exception that training raises.
    """
    arguments = [*run.command, *_quietly(run.command, folder)]
    try:
        with silence():
            cli = _Fit(["fit", *arguments], run.collect)
            return Measured(cli.metrics, cli.curves, _collected(cli, run.collect, arguments, folder))
    finally:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        gc.collect()  # trainers and modules form reference cycles that hold all their data


def metric_names(run: Run) -> list[str]:
    """Returns the names of the metrics that a run will have, seen in one batch of each split; none if that fails.

    Args:
        run: The run, with the words after ``fit`` as its command.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*run.command, *_quietly(run.command, Path(folder)), "--trainer.fast_dev_run", "true"]
        try:
            with silence():
                return list(_Fit(["fit", *arguments], ()).metrics)
        except (Exception, SystemExit):  # the run itself fails with a better message, or one batch isn't enough
            return []


def _quietly(command: Sequence[str], folder: Path) -> list[str]:
    settings = {
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.default_root_dir": str(folder),
        "trainer.devices": "1",  # every further process would start the whole study again
        "checkpoint.dirpath": str(folder / "checkpoints"),
    }
    if not any(word.startswith("--trainer.logger") for word in command):  # otherwise the study sets one
        settings["trainer.logger"] = "false"
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def _collected(cli: _Fit, collect: Sequence[str], arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    collected: dict[str, Any] = {}
    if "weights" in collect:
        collected["weights"] = weights_of(cli.model)
    if "activations" in collect:
        collected["activations"] = cli.recorder.collected()
    if {"reload", "predictions"} & set(collect):
        checkpoint = selected_checkpoint(cli.trainer)
        if not checkpoint and "reload" in collect:
            checkpoint = str(folder / "checkpoints" / "selected.ckpt")
            cli.trainer.save_checkpoint(checkpoint)
        predicted = _joined(cli.trainer.predict(cli.model, datamodule=cli.datamodule))
        if "predictions" in collect:
            collected["predictions"] = predictions_of(_targets(cli.datamodule), predicted, cli.datamodule.task)
        if "reload" in collect:
            collected["reload"] = reload_of(predicted, _in_a_new_process(arguments, checkpoint, folder))
    return collected


def _targets(data: Any) -> Tensor:
    loader = data.evaluation_dataloader("test") if isinstance(data, InMemoryData) else None
    if loader is None:
        raise SettingError("collect must leave out predictions where the data module is none of ours with a test part")
    return torch.cat([batch[-1] for batch in loader])  # batches of tables also have codes


def _in_a_new_process(arguments: Sequence[str], checkpoint: str, folder: Path) -> Tensor:
    """Returns the predictions of a new process that has only the arguments and the checkpoint."""
    path = folder / "checkpoints" / "predicted.pt"
    process = multiprocessing.get_context("spawn").Process(
        target=_predict_into, args=(path, ["predict", *arguments, "--ckpt_path", checkpoint], torch.get_num_threads())
    )
    process.start()
    process.join()
    found: Mapping[str, Any] = torch.load(path, weights_only=True) if path.is_file() else {}
    if "predictions" not in found:
        raise RuntimeError(f"a new process couldn't load the model: {found.get('error', process.exitcode)}")
    predictions: Tensor = found["predictions"]
    return predictions


def _predict_into(path: Path, arguments: Sequence[str], threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        with silence():
            found: dict[str, Any] = {"predictions": _Predict(arguments, parser_class=RaisingParser).predictions}
    except Exception:
        found = {"error": traceback.format_exc()}
    torch.save(found, path)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppresses terminal output, which would disturb the single progress bar of all runs."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning_reg")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
