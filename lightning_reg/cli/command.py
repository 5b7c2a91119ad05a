"""LightningCLI with checked links between data and model, checkpoints by name, and a summary of every fit."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

# These imports register short names with the parser: --model MLP, --trainer.callbacks+=L2Penalty.
import lightning_reg.callbacks
import lightning_reg.transforms  # noqa: F401
from lightning_reg.callbacks import RegularizationAudit
from lightning_reg.cli.answers.checks import check_devices, check_settings, within_memory
from lightning_reg.cli.answers.exceptions import Beginning, answered
from lightning_reg.cli.answers.explanation import as_plain
from lightning_reg.cli.interruption import InterruptBetweenBatches
from lightning_reg.cli.invocation import changed_command
from lightning_reg.cli.links import FROM_DATA, argument_from_data
from lightning_reg.cli.networks import fitting_network
from lightning_reg.cli.parser import BriefParser
from lightning_reg.cli.results.figures import write_figures
from lightning_reg.cli.results.predictions import PredictionSettings, use_samples, write_predictions
from lightning_reg.cli.results.summary import selected_checkpoint, summarize
from lightning_reg.cli.resuming import check_callbacks, check_can_go_on, check_data
from lightning_reg.cli.runs import (
    check_writable,
    continue_run,
    find_checkpoint,
    load_with,
    nothing_half_written,
    read_for,
)
from lightning_reg.core.lightning import callbacks_of
from lightning_reg.core.messages import quiet
from lightning_reg.core.metric_names import higher_is_better, lower_is_better, short_names
from lightning_reg.core.technique import Technique
from lightning_reg.data import InMemoryData
from lightning_reg.models import Supervised
from lightning_reg.settings import SettingError

__all__ = ["MONITOR", "RegularizationCLI"]

MONITOR = "val/loss"
"""Metric that selects the best checkpoint, unless another is set; our modules log it."""


class _LastCheckpoint(ModelCheckpoint):
    """A class of its own, so that its state and that of a user's ModelCheckpoint have different keys."""


class RegularizationCLI(LightningCLI):
    """LightningCLI for any LightningModule and LightningDataModule, ours by their short names.

    In addition to LightningCLI:

    - model arguments that describe the data (``num_classes``, ``num_targets``, ``input_shape``, ``categories``) are
      taken from the data module, as are a third-party network's ``num_classes`` and ``in_channels``; an explicitly set
      value that contradicts the data is an error;
    - the best checkpoint (``--checkpoint.monitor``) and the last one are kept as ``best.ckpt`` and ``last.ckpt``, also
      when a run is interrupted, and ``--ckpt_path best`` and ``--ckpt_path last`` find those of the newest run;
    - ``fit`` ends with a table, ``predict`` writes a CSV file.

    Args:
        args: Words after the script's name; ``sys.argv[1:]`` if None.
        parser_class: Class of the argument parser.
    """

    keeps_last = True
    """Whether to keep the last checkpoint as well, from which a run can be resumed."""

    def __init__(
        self, args: Sequence[str] | None = None, *, parser_class: type[LightningArgumentParser] = BriefParser
    ) -> None:
        super().__init__(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=parser_class,
            auto_configure_optimizers=False,  # the optimizer is set by the model's argument only
            save_config_kwargs={"overwrite": True},  # a run without a logger has no folder of its own
            args=None if args is None else list(args),
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"data": {"class_path": "lightning_reg.data.ImageData"}})
        parser.add_class_arguments(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": MONITOR,
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.add_class_arguments(PredictionSettings, "prediction")
        for name in FROM_DATA:
            parser.link_arguments(
                "data", f"model.init_args.{name}", compute_fn=self._from_data(name), apply_on="instantiate"
            )

    def _from_data(self, name: str) -> Callable[[LightningDataModule], Any]:
        def value(data: LightningDataModule) -> Any:
            return argument_from_data(name, self._get(self.config, "model"), data)

        return value

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.words = sys.argv[1:] if args is None else list(cast("Sequence[str]", args))
        _check_additions(self.words)
        with answered({}):
            # Avoids LightningCLI's warning about calls from Python.
            self.config = parser.parse_args(cast("Sequence[str] | None", args))
        self.settings: dict[str, Any] = as_plain(self.config[self.config["subcommand"]])
        _check_indices(self.words, self.settings)
        check_settings(self.settings)

    @override
    def _set_seed(self) -> None:
        with answered({"seed_everything": self._get(self.config, "seed_everything")}):
            super()._set_seed()

    @override
    def instantiate_classes(self) -> None:
        self.beginning = Beginning()
        with answered(self.settings), within_memory("model"):
            super().instantiate_classes()

    @override
    def _parse_ckpt_path(self) -> None:
        """Leaves the configuration unchanged.

        LightningCLI would replace the model's settings with those in the checkpoint, whatever the command line says.
        Here the command line decides what is built, and a checkpoint that doesn't match is an error.
        """

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        callbacks: list[Callback] = config.get("callbacks") or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        _warn_of_directions(callbacks)
        if config.get("enable_checkpointing") is not False:
            best = self._get(self.config_init, "checkpoint")
            if best.mode == "min" and higher_is_better(str(best.monitor)):
                raise SettingError(f"checkpoint.mode must be max to keep the best {best.monitor}, but is min")
            if best.mode == "max" and lower_is_better(str(best.monitor)):
                rank_zero_warn(
                    f"checkpoint.mode max keeps the highest {best.monitor}, which by its name is better where it is "
                    "lower: set it to min"
                )
            last = _LastCheckpoint(best.dirpath, filename="last", enable_version_counter=False)
            named = [("checkpoint", best), *(("trainer.callbacks", callback) for callback in _saving(callbacks))]
            logged = [
                entry
                for section, saves in named
                if saves.every_n_epochs == 1
                for entry in (
                    (f"{section}.monitor", [] if saves.monitor is None else [saves.monitor]),
                    (f"each name in {section}.filename", _metrics_in(saves.filename)),
                )
            ]
            self.beginning = Beginning(last, logged)
            # Lightning reports the first ModelCheckpoint.
            callbacks = [best, *([last] if self.keeps_last else []), *callbacks]
        callbacks = [self.beginning, *callbacks, *self.further_callbacks(callbacks)]
        if self.subcommand == "fit":
            callbacks.append(InterruptBetweenBatches())
        if self.subcommand != "fit":
            self.save_config_callback = None  # config.yaml records how a model was trained
        try:
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except RuntimeError as error:
            if "more than one stateful callback" not in str(error):
                raise
            kind = re.search(r"`(\w+)`", str(error))
            raise SettingError(
                "trainer.callbacks must not hold two callbacks of one kind with equal settings, by which checkpoints "
                f"tell them apart, but has two of {kind[1] if kind else 'them'}"
            ) from error

    def further_callbacks(self, callbacks: Sequence[Callback]) -> list[Callback]:
        """Returns callbacks to add to the configured ones."""
        return []

    @override
    def after_instantiate_classes(self) -> None:
        """Validates the settings as far as possible before any logger creates a folder."""
        if isinstance(self.model, Supervised):
            configured = self._get(self.config, "model").get("init_args") or {}
            network = fitting_network(configured.get("network"), self.model)
            if network is not None:
                self.model.use_network(network)
        run = self.config_init[self.subcommand]
        check_devices(self.trainer)
        # A checkpoint is loaded as data only, unless the user allows more.
        run["weights_only"] = run["weights_only"] is not False
        load_with(self.trainer, weights_only=run["weights_only"])
        if run["ckpt_path"]:
            path = run["ckpt_path"] = find_checkpoint(self.trainer, run["ckpt_path"], run["checkpoint"].dirpath)
            found = read_for(str(self.subcommand), path, self.model, weights_only=run["weights_only"])
            if self.subcommand == "fit":
                check_callbacks(path, found, self.trainer)
            self.beginning.at_fit_start = lambda: check_can_go_on(path, found, self.trainer)
            continue_run(self.trainer, path)
        elif self.subcommand != "fit" and isinstance(self.model, Supervised):
            raise SettingError(
                f"ckpt_path must be best, last or a file for {self.subcommand}; without one the weights would be random"
            )
        check_writable(self.trainer, run["checkpoint"].dirpath)
        _check_filename("checkpoint", run["checkpoint"])
        for callback in _saving(callbacks_of(self.trainer)):
            _check_filename("trainer.callbacks", callback)
        if isinstance(self.datamodule, InMemoryData) and self.trainer.is_global_zero:
            # With a checkpoint, the data module prints its messages when it is restored.
            with answered(self.settings), quiet() if run["ckpt_path"] else nullcontext():
                self.datamodule.prepare_data()
                self.datamodule.setup(str(self.subcommand))
                if self.subcommand in ("test", "predict"):
                    self.datamodule.test_dataloader()
            if run["ckpt_path"]:
                check_data(path, found, self.datamodule)

    def fit(self, **settings: Any) -> None:
        """Trains; when interrupted, prints the command that resumes."""
        for callback in callbacks_of(self.trainer):
            if isinstance(callback, RegularizationAudit):
                callback.final_metrics = False  # the summary logs those of the best weights
        try:
            with self._answering(settings):
                self.trainer.fit(**settings)
        except SystemExit:
            if not self.trainer.interrupted:
                raise
            saved = [
                callback.best_model_path
                for callback in self.trainer.checkpoint_callbacks
                if isinstance(callback, ModelCheckpoint) and callback.filename == "last"
            ]
            if any(saved):
                command = changed_command(self.words, ["--ckpt_path", os.path.relpath(saved[0])])
                print(f"\nInterrupted. To go on:\n  {command}")
            else:
                print("\nInterrupted, before there was anything to save.")
            raise SystemExit(130) from None  # the status that shells expect of an interrupted program

    @contextmanager
    def _answering(self, settings: Mapping[str, Any]) -> Iterator[None]:
        with (
            nothing_half_written(self.trainer),
            answered(self.settings, self.beginning, settings.get("ckpt_path")),
        ):
            yield

    def after_fit(self) -> None:
        """Prints the summary."""
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Trainer.__init__ elsewhere
            with answered(self.settings, self.beginning, selected_checkpoint(self.trainer) or None):
                summarize(
                    self.trainer,
                    self.model,
                    self.datamodule,
                    weights_only=self.config_init[self.subcommand]["weights_only"],
                )

    def validate(self, **settings: Any) -> None:
        """Evaluates on the validation split."""
        with self._answering(settings):
            self.trainer.validate(**settings)

    def test(self, **settings: Any) -> None:
        """Evaluates on the test split and writes the metrics to ``metrics.json``."""
        with self._answering(settings):
            results = self.trainer.test(**settings)
            log_dir = self.trainer.log_dir  # on every rank: they agree on it
            if results and self.trainer.is_global_zero:
                metrics = {short: float(results[0][name]) for name, short in short_names(results[0]).items()}
                write_figures(self.trainer, log_dir, {"test": metrics})

    def predict(self, **settings: Any) -> None:
        """Predicts the test split and writes a CSV file."""
        if self.trainer.world_size > 1:
            raise SettingError(f"trainer.devices must be 1 for predict, but there are {self.trainer.world_size}")
        with self._answering(settings):
            use_samples(self.model, self.config_init["predict"]["prediction"])
            batches = self.trainer.predict(**{**settings, "return_predictions": True})
            write_predictions(self.trainer, self.datamodule, batches)


def _metrics_in(filename: str | None) -> list[str]:
    """Returns the names of metrics in a file name such as ``{epoch}-{val/loss:.2f}``."""
    return [name for name in re.findall(r"\{(.*?)[:}]", filename or "") if name not in ("epoch", "step")]


def _saving(callbacks: Sequence[Callback]) -> list[ModelCheckpoint]:
    return [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]


def _check_filename(section: str, saves: ModelCheckpoint) -> None:
    """Raises if a file's name has no metrics in its braces, which Lightning finds when it saves."""
    try:
        saves.format_checkpoint_name({"epoch": torch.tensor(0), "step": torch.tensor(0)})
    except (ValueError, LookupError, AttributeError) as error:
        raise SettingError(
            f"{section}.filename must have names of metrics in braces, but is {saves.filename!r}: {error}"
        ) from error


def _warn_of_directions(callbacks: Sequence[Callback]) -> None:
    """Warns of Lightning's early stopping in the wrong direction; ours warns itself, wherever it is used."""
    stopping = [callback for callback in callbacks if isinstance(callback, EarlyStopping)]
    for callback in stopping:
        if not isinstance(callback, Technique) and callback.mode == "min" and higher_is_better(callback.monitor):
            rank_zero_warn(
                f"{type(callback).__name__} waits for a lower {callback.monitor}, which by its name is better where it "
                "is higher: set mode to max"
            )


def _check_indices(words: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Raises if one entry of a list is set, which the parser takes for a pair of its index and its value."""
    for word in words:
        indexed = re.fullmatch(r"--([\w.]+)\.(\d+)", word.partition("=")[0])
        value: Any = settings
        for part in indexed[1].split(".") if indexed else ():
            value = value[-1] if isinstance(value, list) and value else value
            value = value.get(part, (value.get("init_args") or {}).get(part)) if isinstance(value, Mapping) else None
        if indexed and isinstance(value, (list, tuple)):
            raise SettingError(f"{indexed[1]} must be given as a whole, but has {indexed[1]}.{indexed[2]}")


def _check_additions(words: Sequence[str]) -> None:
    """Raises if nothing is to be added to a list, which the parser takes for no list at all."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, is_given, value = word.partition("=")
        is_addition = name.startswith("--") and name.endswith("+")
        if is_addition and (value if is_given else following).strip().lower() in ("", "~", "null"):
            raise SettingError(f"{name.removeprefix('--')} must be something to add, but is null")
