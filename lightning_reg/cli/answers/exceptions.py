"""Turns exceptions that Lightning, torch and others raise while a run is built into messages about settings."""

import contextlib
import inspect
import linecache
import pkgutil
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jsonargparse
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.connectors import checkpoint_connector
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import OutOfMemoryError, optim
from torch.nn.utils import prune
from torch.optim import lr_scheduler
from typing_extensions import override

import lightning_reg
from lightning_reg.cli.answers.checks import within_memory
from lightning_reg.cli.answers.explanation import SECTIONS, problem_in, shown
from lightning_reg.core.lightning import validation_interval
from lightning_reg.settings import SettingError, first_in_chain

__all__ = ["Beginning", "answered"]

_OURS = Path(lightning_reg.__file__).parent
_INSTALLED = tuple(Path(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_OPTIMIZERS = Path(optim.__file__).parent
_PARSER = Path(inspect.getfile(jsonargparse)).parent
_WATCHING = inspect.getfile(within_memory)
"""File of a function mode that calls torch's functions for those who make something."""
_SETTINGS_OF_OTHERS = (
    Path(callbacks.__file__).parent,
    Path(inspect.getfile(prune)),  # which checks the settings of ModelPruning
    _OPTIMIZERS,
)
"""Code of Lightning and torch that checks settings, also while training runs."""
_MOST = 600
"""Largest number of characters of a message; some libraries print their arguments."""


class Beginning(Callback):
    """Tracks whether the first batch has been requested; from then on few exceptions are attributed to settings.

    Args:
        last: Checkpoint callback that saves when an exception ends the fit: only once training has started, so that the
            checkpoint to resume from isn't overwritten, and not if a setting caused the exception.
        logged: Settings that name metrics which must be logged by the end of the first epoch, with these names.
    """

    def __init__(self, last: ModelCheckpoint | None = None, logged: Sequence[tuple[str, Sequence[str]]] = ()) -> None:
        self.has_begun = False
        self.at_fit_start: Callable[[], None] = lambda: None
        """Called after the optimizers are created, and before their state is restored."""
        self.has_stepped = False
        """Whether an optimizer has stepped; if it can't, in a run that goes on, its restored state doesn't fit."""
        self._first_step = 0
        self._last = last
        self._logged = logged

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at_fit_start()

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_begun = True

    @override
    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_begun = False  # Lightning sets up the training data only now

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_begun = True
        self._first_step = trainer.global_step
        if self._last is not None:
            self._last.save_on_exception = True

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.has_stepped = self.has_stepped or trainer.global_step > self._first_step

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = sorted(trainer.callback_metrics)
        is_usual = validation_interval(trainer) == 1.0 and trainer.check_val_every_n_epoch == 1
        if not is_usual or trainer.current_epoch > 0:
            return
        for setting, names in self._logged:
            for name in names:
                if name not in logged:
                    raise SettingError(
                        f"{setting} must be a metric that is logged, {', '.join(logged)}, but is {name!r}"
                    )

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        is_of_settings = isinstance(exception, (SettingError, MisconfigurationException)) or _is_of_settings(exception)
        if self._last is not None and ((trainer.current_epoch == 0 and is_of_settings) or self.cannot_step(exception)):
            self._last.save_on_exception = False

    def cannot_step(self, error: BaseException) -> bool:
        """Whether an optimizer has raised an exception in its very first step, memory aside."""
        if self.has_stepped or isinstance(error, (MemoryError, OutOfMemoryError)):
            return False
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        return any(map(_is_step, frames)) and _is_within(frames[-1], _OPTIMIZERS)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_begun = True

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_begun = True

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_begun = True


@contextlib.contextmanager
def answered(
    config: Mapping[str, Any], beginning: Beginning | None = None, checkpoint: str | None = None
) -> Iterator[None]:
    """Turns exceptions that third-party code raises while a run is built into one sentence that names the setting.

    Exceptions from the user's code keep their traceback, and so do ours, which are bugs of the library. An exception
    raised while a checkpoint is restored, or by an optimizer in the first step after that, is always attributed to the
    checkpoint. Once training has begun, only what Lightning's callbacks and torch's optimizers raise is taken for a
    setting's fault, and whatever happens in torch's optimizers in the very first step.

    Args:
        config: All settings of a command.
        beginning: Callback that tracks when the run has been built; always being built if None.
        checkpoint: Path of the checkpoint that is restored, if any.

    Raises:
        SettingError: In place of the original exception.
    """
    try:
        yield
    except Exception as error:
        if first_in_chain(error, (SettingError,)):
            raise
        chain = _chain(error)
        cause = chain[-1]
        frames = [frame for raised in chain for frame, _ in traceback.walk_tb(raised.__traceback__)]
        while frames and frames[-1].f_code.co_filename == _WATCHING:
            frames.pop()
        if not frames or cause.__traceback__ is None or _is_users(frames[-1]):
            raise
        has_begun = beginning is not None and beginning.has_begun
        cannot_step = beginning is not None and beginning.cannot_step(cause)
        is_restoring = any(frame.f_globals.get("__name__") == checkpoint_connector.__name__ for frame in frames)
        if checkpoint is not None and (is_restoring or cannot_step):
            is_incomplete = isinstance(cause, KeyError) and len(cause.args) == 1
            fault = f"{cause.args[0]!r} is missing from it" if is_incomplete else _sentence(cause, always=True)
            raise SettingError(f"ckpt_path {checkpoint!r} can't be restored: {fault}") from error
        if has_begun and not cannot_step and not _is_of_settings(cause):
            raise
        if _is_within(frames[-1], _OURS):
            raise
        told = problem_in(map(str, chain)) if _is_within(frames[-1], _PARSER) else None
        if told:
            place = next((path for path, entry in _objects(config) if entry["class_path"] == told[0]), told[0])
            raise SettingError(f"{place}: {told[1]}") from error
        place = _setting(config, frames, str(cause))
        if has_begun and _is_within(frames[-1], _OPTIMIZERS):
            is_schedule = frames[-1].f_code.co_filename == lr_scheduler.__file__
            place = "model.lr_scheduler" if is_schedule else "model.optimizer"
        raise SettingError(f"{place}: {_sentence(cause)}" if place else _sentence(cause)) from error


def _chain(error: BaseException) -> list[BaseException]:
    """Returns an exception followed by its chain of causes."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _is_of_settings(error: BaseException) -> bool:
    """Whether code that checks settings has raised an exception itself, rather than a tensor's operation in it."""
    lines = list(traceback.walk_tb(error.__traceback__))
    if not lines:
        return False
    frame, number = lines[-1]
    line = linecache.getline(frame.f_code.co_filename, number).lstrip()
    return _is_within(frame, *_SETTINGS_OF_OTHERS) and line.startswith(("raise ", "assert "))


def _is_step(frame: FrameType) -> bool:
    return frame.f_code.co_name == "step" and isinstance(frame.f_locals.get("self"), optim.Optimizer)


def _is_within(frame: FrameType, *folders: Path) -> bool:
    file = Path(frame.f_code.co_filename)
    return any(file.is_relative_to(folder) for folder in folders)


def _is_users(frame: FrameType) -> bool:
    is_built_in = frame.f_code.co_filename.startswith("<frozen")
    return not is_built_in and not _is_within(frame, _OURS, *_INSTALLED)


def _sentence(error: BaseException, *, always: bool = False) -> str:
    """Returns an exception's message, with the exception's type if the message alone is unclear."""
    text = " ".join(str(error).split())
    if not text and isinstance(error, AssertionError):
        frame, number = list(traceback.walk_tb(error.__traceback__))[-1]
        text = linecache.getline(frame.f_code.co_filename, number).strip().removeprefix("assert ")
        return f"it must hold that {text}" if text else "AssertionError"
    if always or not text or isinstance(error, (KeyError, AttributeError, TypeError)):
        text = f"{type(error).__name__}{f': {text}' if text else ''}"
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."


def _setting(config: Mapping[str, Any], frames: list[FrameType], message: str) -> str:
    """Returns the setting that caused an exception: the object that acted, and its argument if exactly one fits.

    Objects that nobody configured, such as the callbacks that Lightning adds, aren't named. Without an object it is the
    setting itself if there is no other.
    """
    objects = list(_objects(config))
    for frame in reversed(frames):
        made = frame.f_locals.get("self")
        path, entry = next(((path, entry) for path, entry in objects if _is_of(made, entry)), ("", {}))
        arguments = entry.get("init_args") or {}
        section = next((name for name, kind in SECTIONS.items() if isinstance(made, kind)), None)
        if not path and section is not None and (frame.f_code.co_name == "__init__" or isinstance(made, Callback)):
            path, arguments = section, config.get(section) or {}
        if path:
            break
    else:
        return ", ".join(f"{name} is {shown(value)}" for name, value in config.items()) if len(config) == 1 else ""
    words = set(re.findall(r"[\w.+-]+", message))
    named = [name for name in arguments if name in words]
    meant = named or [name for name, value in arguments.items() if value not in (None, "") and str(value) in words]
    if len(meant) == 1:
        return f"{path}.{meant[0]} is {shown(arguments[meant[0]])}"
    is_one_of_several = sum(other == path for other, _ in objects) > 1
    return f"{type(made).__name__} ({path})" if is_one_of_several else path


def _is_of(made: Any, entry: Mapping[str, Any]) -> bool:
    """Whether an object is the one that an entry with a ``class_path`` configures."""
    try:
        kind = pkgutil.resolve_name(entry["class_path"])
    except (ImportError, AttributeError, ValueError):
        return False
    return isinstance(kind, type) and isinstance(made, kind)


def _objects(config: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields every object configured by ``class_path``, with the name of its setting."""
    if isinstance(config, list):
        for entry in config:
            yield from _objects(entry, path)
    elif isinstance(config, Mapping):
        if isinstance(config.get("class_path"), str):
            yield path, config
        for name, entry in config.items():
            yield from _objects(entry, path if name == "init_args" else f"{path}.{name}" if path else name)
