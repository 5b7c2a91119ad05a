"""One run of a search: the same as ``fit`` with the same settings, without output, evaluated on validation only."""

import gc
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor, ModelSummary, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from lightning_reg.cli.answers.checks import check_settings
from lightning_reg.cli.answers.explanation import as_plain
from lightning_reg.cli.command import RegularizationCLI
from lightning_reg.cli.results.summary import selected_checkpoint
from lightning_reg.cli.unattended.fitting import RaisingParser, UnparsableError, silence
from lightning_reg.core.lightning import twins
from lightning_reg.search.overlay import class_of, put, value_of
from lightning_reg.search.step_timer import StepTimer
from lightning_reg.search.trials.running import STEP_SECONDS
from lightning_reg.settings import SettingError, first_in_chain
from lightning_reg.studies.runs import Measured, Run

# Settings that differ between the runs of a trial, which needn't be parsed again for them.
_OF_A_RUN = {
    "seed_everything": "seed_everything",
    "data.seed": "data.init_args.seed",
    "data.fold": "data.init_args.fold",
    "trainer.default_root_dir": "trainer.default_root_dir",
    "checkpoint.dirpath": "checkpoint.dirpath",
}

__all__ = ["Fits", "as_yaml", "fit_trial", "for_trials"]


def for_trials(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings without what trials don't need: loggers, callbacks that only monitor, and output.

    Args:
        settings: All settings of a fit.
    """
    made = deepcopy(dict(settings))
    callbacks = made["trainer"].get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    made["trainer"] |= {
        "callbacks": [entry for entry in callbacks if not _only_watches(class_of(entry))],
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "devices": 1,
    }
    return made


def _only_watches(kind: type | None) -> bool:
    if kind is None:
        return False
    shows = issubclass(kind, twins(DeviceStatsMonitor, LearningRateMonitor, ModelSummary, ProgressBar))
    return shows or bool(getattr(kind, "only_watches", False))


class Fits(RegularizationCLI):
    """Creates module, data and trainer from plain settings, with a command-line parser that is built only once."""

    keeps_last = False

    def __init__(self) -> None:
        self._is_built = False
        self._parsed: tuple[str, Namespace] | None = None
        self.timer = StepTimer()
        super().__init__([], parser_class=RaisingParser)
        self._is_built = True
        self.save_config_callback = None

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        nothing: Any = Namespace
        self.config = nothing(subcommand="fit", fit=nothing(seed_everything=False))
        self.settings = {}

    @override
    def instantiate_classes(self) -> None:
        if self._is_built:
            super().instantiate_classes()

    @override
    def after_instantiate_classes(self) -> None:
        if self._is_built:
            super().after_instantiate_classes()

    @override
    def _set_seed(self) -> None:
        if self._is_built:
            super()._set_seed()

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        pass

    @override
    def further_callbacks(self, callbacks: Sequence[Callback]) -> list[Callback]:
        self.timer = StepTimer()
        return [self.timer]

    @contextmanager
    def _raising(self) -> Iterator[None]:
        try:
            yield
        except UnparsableError as error:
            raise SettingError(str(error)) from error
        except Exception as error:
            foreseen = first_in_chain(error, (SettingError, MisconfigurationException))
            if foreseen is None or foreseen is error:
                raise
            raise SettingError(str(foreseen)) from error

    def parse(self, settings: Mapping[str, Any]) -> Namespace:
        """Parses settings and fills in the defaults.

        Args:
            settings: Settings of a fit, as plain values.

        Raises:
            SettingError: If the settings are invalid.
        """
        rest = deepcopy(dict(settings))
        varying = {name: value_of(rest, name) for name in _OF_A_RUN if value_of(rest, name) is not None}
        for name in varying:
            put(rest, name, None)
        key = json.dumps(rest, sort_keys=True, default=str)
        if self._parsed is None or key != self._parsed[0]:
            with self._raising():
                whole: Namespace = self.parser.parse_object({"subcommand": "fit", "fit": deepcopy(dict(settings))})
            self._parsed = key, whole
        config: Namespace = self._parsed[1].clone()
        for name, value in varying.items():
            config[f"fit.{_OF_A_RUN[name]}"] = value
        return config

    def make(self, settings: Mapping[str, Any]) -> None:
        """Creates module, data and trainer.

        Args:
            settings: Settings of a fit, as plain values.

        Raises:
            SettingError: If the settings are invalid.
        """
        self.config = self.parse(settings)
        self.config_dump = deepcopy(dict(settings))  # the hyperparameters that modules may save
        self.settings = as_plain(self.config["fit"])
        with self._raising():
            check_settings(self.settings)
            self._set_seed()
            self.instantiate_classes()
            self.after_instantiate_classes()

    def as_yaml(self, settings: Mapping[str, Any]) -> str:
        """Returns a configuration for ``fit`` as YAML, without defaults.

        Args:
            settings: Settings of a fit, as plain values.
        """
        parser = self._subcommand_parsers["fit"]
        text: str = parser.dump(self.parse(settings)["fit"], skip_default=True, skip_validation=True)
        return text

    def measured(self) -> dict[str, float]:
        """Returns the metrics that the module logs in validation, with the selected weights."""
        best = selected_checkpoint(self.trainer) or None
        found = self.trainer.validate(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False)
        return {name: float(value) for metrics in found for name, value in metrics.items()}


@cache
def _fits() -> Fits:
    """Returns the instance of this process, because building the parser is slow."""
    return Fits()


def as_yaml(settings: Mapping[str, Any]) -> str:
    """Returns a configuration for ``fit`` as YAML, without defaults.

    Args:
        settings: Settings of a fit, as plain values.
    """
    return _fits().as_yaml(settings)


def fit_trial(run: Run, folder: Path) -> Measured:
    """Trains, selects on validation, and evaluates the selected weights there. The test split isn't used.

    Args:
        run: The run, whose arguments contain the settings of a fit.
        folder: Folder of the run; its checkpoints are deleted at the end.

    Raises:
        Exception: Any exception that training raises.
    """
    settings = deepcopy(dict(run.arguments["settings"]))
    settings["trainer"]["default_root_dir"] = str(folder)
    settings["checkpoint"]["dirpath"] = str(folder / "checkpoints")
    fits = _fits()
    gc.freeze()  # excludes existing objects from the collection afterwards
    try:
        with silence():
            fits.make(settings)
            fits.trainer.fit(fits.model, datamodule=fits.datamodule)
            seconds = fits.timer.seconds
            return Measured({**fits.measured(), **({} if seconds is None else {STEP_SECONDS: seconds})})
    finally:
        for name in ("model", "datamodule", "trainer", "config_init"):
            vars(fits).pop(name, None)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        gc.collect()  # trainers and modules form reference cycles that hold all their data
        gc.unfreeze()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # for example after running out of memory
