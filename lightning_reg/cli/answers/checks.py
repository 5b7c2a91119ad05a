"""Checks for settings that the parser accepts but that can only be mistakes."""

import contextlib
import inspect
import math
import os
import pkgutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, get_args

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.overrides import TorchFunctionMode

import lightning_reg.callbacks
from lightning_reg.cli.answers.explanation import SECTIONS, described, hint_of, parameters_of, shown
from lightning_reg.cli.links import FROM_DATA
from lightning_reg.core.lightning import pickles_for_processes
from lightning_reg.core.technique import Technique
from lightning_reg.models import Supervised
from lightning_reg.settings import SettingError, check_count, check_range

__all__ = ["check_devices", "check_settings", "within_memory"]

_GIB = 2**30
_WIDEST = 2**28
_LONGEST_NAME = 200
"""Bytes of a file's name; systems allow 255, and endings and numbers are added."""


def check_settings(config: Mapping[str, Any]) -> None:
    """Checks for settings that have the right type but can only be mistakes.

    Args:
        config: All settings of a command.

    Raises:
        SettingError: If there is such a setting.
    """
    for section, owner in SECTIONS.items():
        if not isinstance(config.get(section), Mapping):
            raise SettingError(f"{section} must be a mapping of settings, but is {shown(config.get(section))}")
        _check_nulls(section, owner, config[section], ())
    _check_size("", config)
    if not isinstance(config.get("prediction", {}), Mapping):
        raise SettingError(f"prediction must be a mapping of settings, but is {shown(config['prediction'])}")
    for section in ("model", "data"):
        _check_object(section, config.get(section), FROM_DATA)
    _check_weight_decay(config.get("model") or {})
    trainer = config["trainer"]
    _check_callbacks(trainer)
    _check_trainer(trainer)
    if trainer.get("enable_checkpointing") is not False:
        _check_checkpoint(config["checkpoint"], trainer.get("max_epochs"))
    for part in ("logger", "profiler"):
        for entry in _entries(trainer.get(part)):
            _check_numbers(f"trainer.{part}", entry)
            _check_files(f"trainer.{part}", entry)
            _check_writer(f"trainer.{part}", entry)
    workers = ((config.get("data") or {}).get("init_args") or {}).get("num_workers")
    most = max(64, 8 * (os.cpu_count() or 1))
    if isinstance(workers, int) and workers > most:
        machine = f"this machine with {os.cpu_count()} processors"
        raise SettingError(f"data.num_workers must be at most {most} on {machine}, but is {workers}")


def _check_callbacks(trainer: Mapping[str, Any]) -> None:
    for callback in _entries(trainer.get("callbacks")):
        _check_object("trainer.callbacks", callback, ())
        _check_start(callback, trainer.get("max_epochs"))
        _check_numbers("trainer.callbacks", callback)
        _check_files("trainer.callbacks", callback)
        kind = pkgutil.resolve_name(callback["class_path"])
        if _is_base(kind):
            raise SettingError(
                f"trainer.callbacks must name a technique, but {kind.__name__} is only what several have in common"
            )
        if kind is Callback:
            raise SettingError("trainer.callbacks must name a Callback by class_path, but has one that does nothing")


def _check_checkpoint(checkpoint: Mapping[str, Any], epochs: Any) -> None:
    _check_inside("checkpoint.filename", checkpoint.get("filename"))
    if checkpoint.get("monitor") is None:
        raise SettingError("checkpoint.monitor must be a metric that is logged, but is null")
    _check_period("checkpoint.every_n_epochs", checkpoint.get("every_n_epochs"), epochs)


_LEAST_OF_OTHERS = {
    "init_val": 1,
    "max_trials": 1,
    "max_val": 1,
    "steps_per_trial": 1,
    "num_training_steps": 1,
    "update_every_n_steps": 1,
    "flush_logs_every_n_steps": 1,
    "window_size": 1,
    # -1 stands for all of them, or for the last.
    "save_top_k": -1,
    "max_depth": -1,
    "row_limit": -1,
    "pruning_dim": -sys.maxsize,
    "pruning_norm": -sys.maxsize,
}
"""Smallest whole numbers of some settings of Lightning's callbacks, loggers and profilers; of the others it is 0."""


def _check_numbers(path: str, entry: Mapping[str, Any]) -> None:
    """Checks numbers of Lightning's own classes, which check few: what is counted or numbered begins with 0."""
    if entry["class_path"].startswith(("lightning.", "pytorch_lightning.")):
        for name, value in _given(entry).items():
            if isinstance(value, int) and not isinstance(value, bool):
                check_count(f"{path}.{name}", value, low=_LEAST_OF_OTHERS.get(name, 0))


def _check_files(path: str, entry: Mapping[str, Any]) -> None:
    """Checks that loggers, profilers and what saves checkpoints write to files within their folders."""
    kind, names = _resolved(entry["class_path"]), {"filename"}
    if isinstance(kind, type) and issubclass(kind, Logger):
        names = {"name", "version", "sub_dir"}
    elif not (isinstance(kind, type) and issubclass(kind, (Checkpoint, Profiler))):
        return
    for name in names:
        _check_inside(f"{path}.{name}", (entry.get("init_args") or {}).get(name))


def _check_writer(path: str, entry: Mapping[str, Any]) -> None:
    """Checks what TensorBoardLogger hands on to its writer, whose thread only prints that it can't use it."""
    kind = _resolved(entry["class_path"])
    if not (isinstance(kind, type) and issubclass(kind, TensorBoardLogger)):
        return
    from torch.utils.tensorboard import SummaryWriter  # imports TensorBoard

    known, own = parameters_of(SummaryWriter), parameters_of(kind)
    for name, value in _given(entry).items():
        if name in own:
            continue
        if name not in known or name == "log_dir":
            raise SettingError(f"{name} is no setting of {kind.__name__} ({path})")
        default = known[name].default
        if isinstance(default, int):
            check_count(f"{path}.{name}", value, low=0)
        elif isinstance(default, str) and not (isinstance(value, str) and PurePath(value).name == value):
            raise SettingError(f"{path}.{name} must be a part of a file's name, but is {shown(value)}")


def _given(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**(entry.get("init_args") or {}), **(entry.get("dict_kwargs") or {})}


def _entries(value: Any) -> list[Mapping[str, Any]]:
    """Returns the objects that are configured by one mapping with ``class_path``, or by a list of such."""
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if isinstance(entry, Mapping) and isinstance(entry.get("class_path"), str)]


_LEAST = {
    "log_every_n_steps": 0,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": -1,
    "min_epochs": 0,
    "min_steps": 0,
}


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    for number, least in _LEAST.items():
        if trainer.get(number) is not None:
            check_count(f"trainer.{number}", trainer[number], low=least)
    _check_period("trainer.check_val_every_n_epoch", trainer.get("check_val_every_n_epoch"), trainer.get("max_epochs"))
    if trainer.get("max_time") is not None:
        with contextlib.suppress(MisconfigurationException, TypeError):  # which the Trainer raises, too
            seconds = Timer(trainer["max_time"]).time_remaining()
            if seconds is not None and seconds <= 0:
                raise SettingError(f"trainer.max_time must be above 0, but is {shown(trainer['max_time'])}")
    if trainer.get("gradient_clip_val") is not None:
        check_range("trainer.gradient_clip_val", trainer["gradient_clip_val"], low=0)
    elif trainer.get("gradient_clip_algorithm") is not None:
        raise SettingError(
            "trainer.gradient_clip_val must be given with gradient_clip_algorithm "
            f"{trainer['gradient_clip_algorithm']!r}, but is null"
        )
    for number in ("accumulate_grad_batches", "val_check_interval", "limit_train_batches"):
        value = trainer.get(number)
        if isinstance(value, (int, float)):
            check_range(f"trainer.{number}", value, low=0, low_open=True)
    for unit in ("epochs", "steps"):
        low, high = trainer.get(f"min_{unit}"), trainer.get(f"max_{unit}")
        if isinstance(low, int) and isinstance(high, int) and 0 <= high < low:
            raise SettingError(f"trainer.min_{unit} must be at most max_{unit}, which is {high}, but is {low}")


def _check_period(name: str, value: Any, epochs: Any) -> None:
    if isinstance(value, int) and isinstance(epochs, int) and 0 < epochs < value:
        raise SettingError(f"{name} must be at most max_epochs, which is {epochs}, but is {value}")


def _is_base(kind: Any) -> bool:
    """Whether a class is one of our base classes, which aren't meant to be attached."""
    is_ours = isinstance(kind, type) and issubclass(kind, Technique) and kind.__module__.startswith("lightning_reg.")
    return is_ours and kind.__name__ not in lightning_reg.callbacks.__all__


def _check_start(callback: Mapping[str, Any], epochs: Any) -> None:
    """Raises if a callback, such as one of Lightning's that average weights, would start after the end of training."""
    for name, value in (callback.get("init_args") or {}).items():
        is_start = {"start", "starting"} & set(name.split("_")) and "epoch" in name.split("_")
        if is_start and isinstance(value, int) and isinstance(epochs, int) and 0 < epochs <= value:
            raise SettingError(
                f"{name} of {callback['class_path']} must be before the end of training, epoch {epochs}, but is {value}"
            )


def _check_inside(name: str, value: Any) -> None:
    """Raises if a name would place files outside its folder, or can't be that of a file."""
    if not isinstance(value, str):
        return
    if ".." in PurePath(value).parts or PurePath(value).is_absolute():
        raise SettingError(f"{name} must be a name within the run's folder, but is {value!r}")
    if "\0" in value or any(len(os.fsencode(part)) > _LONGEST_NAME for part in PurePath(value).parts):
        raise SettingError(
            f"{name} must have at most {_LONGEST_NAME} bytes and no null byte, as names of files do, but is "
            f"{shown(value)}"
        )


def _check_size(path: str, value: Any) -> None:
    if isinstance(value, (Mapping, list, tuple)):
        for name, entry in value.items() if isinstance(value, Mapping) else enumerate(value):
            _check_size(f"{path}.{name}" if path else str(name), entry)
    elif isinstance(value, int) and abs(value) > sys.maxsize:
        limit = f"at most {sys.maxsize}" if value > 0 else f"at least {-sys.maxsize}"
        # Such a number may be too long to print.
        raise SettingError(f"{path.replace('.init_args', '')} must be {limit}, but is beyond")


def _check_weight_decay(model: Mapping[str, Any]) -> None:
    """Raises if the optimizer has a weight decay of its own beside the model's, which replaces it."""
    kind, arguments = _resolved(model.get("class_path")), model.get("init_args") or {}
    optimizer, own = arguments.get("optimizer"), arguments.get("weight_decay")
    is_ours = isinstance(kind, type) and issubclass(kind, Supervised)
    if not is_ours or own is None or not isinstance(optimizer, Mapping):
        return
    default = parameters_of(_resolved(optimizer.get("class_path"))).get("weight_decay")
    value = (optimizer.get("init_args") or {}).get("weight_decay")
    if default is not None and value not in (None, default.default, own):
        raise SettingError(
            f"model.optimizer.weight_decay must be left out where model.weight_decay is {own}, but is {value}"
        )


def _check_finite(path: str, owner: Any, arguments: Any) -> None:
    """Checks that no number is NaN, unless by default, and those of an optimizer finite; users' classes aside."""
    if getattr(owner, "__module__", "").partition(".")[0] not in ("lightning", "lightning_reg", "torch"):
        return
    is_optimizer = isinstance(owner, type) and issubclass(owner, Optimizer)
    for name, value in arguments.items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, float) and not _is_default(owner, name, value):
                check_range(f"{path}.{name}", number, infinite=not is_optimizer)


def _is_default(owner: Any, name: str, value: Any) -> bool:
    parameters = parameters_of(owner)
    return name in parameters and repr(value) == repr(parameters[name].default)  # a NaN doesn't equal itself


def _check_scheduler(path: str, owner: Any, arguments: Mapping[str, Any]) -> None:
    """Checks the numbers of a scheduler, and runs it for two steps: some divide by their settings only then."""
    if not (isinstance(owner, type) and issubclass(owner, LRScheduler)):
        return
    defaults = {name: argument.default for name, argument in parameters_of(owner).items()}
    given = {name: value for name, value in arguments.items() if value != defaults.get(name)}
    for name, value in given.items():
        if isinstance(value, float):
            check_range(f"{path}.{name}", value)
        elif isinstance(value, int) and not isinstance(value, bool):  # a number of epochs or steps
            check_count(f"{path}.{name}", value, low=0)
    if issubclass(owner, ReduceLROnPlateau):
        return
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            schedule = owner(optimizer, **arguments)
            for _ in range(2):
                optimizer.step()
                schedule.step()
                check_range("the learning rate", float(optimizer.param_groups[0]["lr"]), low=0)
    except NotImplementedError as error:
        raise SettingError(
            f"{path} must be a schedule, but {owner.__name__} is only what schedules have in common"
        ) from error
    except (ArithmeticError, ValueError) as error:
        reason = str(error) if isinstance(error, SettingError) else f"{type(error).__name__}: {error}"
        raise SettingError(f"{path} can't be used with {given}: {reason}") from error
    except Exception:  # it may work with the real optimizer
        pass


def _check_object(path: str, value: Any, given: tuple[str, ...]) -> None:
    """Checks an object configured by ``class_path`` and ``init_args``, and the objects nested in it."""
    owner = _resolved(value.get("class_path")) if isinstance(value, Mapping) else None
    if owner is None:
        return
    if value.get("dict_kwargs") and getattr(owner, "__module__", "").startswith("lightning_reg."):
        raise SettingError(f"{next(iter(value['dict_kwargs']))} is no setting of {owner.__name__} ({path})")
    arguments = value.get("init_args")
    if not isinstance(arguments, Mapping):
        return
    _check_nulls(path, owner, arguments, given)
    _check_scheduler(path, owner, arguments)
    _check_finite(path, owner, arguments)
    for name, argument in arguments.items():
        _check_object(f"{path}.{name}", argument, ())


def _resolved(path: Any) -> Any:
    """Returns what an import path names; None if there is nothing."""
    try:
        return pkgutil.resolve_name(path) if isinstance(path, str) else None
    except (ImportError, AttributeError, ValueError):
        return None


def _check_nulls(path: str, owner: Any, arguments: Any, given: tuple[str, ...]) -> None:
    parameters = parameters_of(owner)
    for name, value in arguments.items():
        default = parameters[name].default if name in parameters else inspect.Parameter.empty
        if value is not None or default in (None, inspect.Parameter.empty) or name in given:
            continue
        hint = hint_of(owner, name)
        if hint is not None and hint is not Any and type(None) not in get_args(hint):
            raise SettingError(f"{path}.{name} must be {described(hint)}, but is null")


def check_devices(trainer: Trainer) -> None:
    """Checks that the trainer starts processes that this machine can run, and finds other machines.

    Raises:
        SettingError: If ``devices`` on the CPU is larger than 8 and than twice the number of cores, or ``num_nodes`` is
            above 1 where nothing says which machine is the first: it would wait for the others; and if the strategy
            spawns its processes.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ:
        raise SettingError(
            f"trainer.num_nodes must be 1 outside of a cluster, but is {trainer.num_nodes}; to start the machines "
            "yourself, set MASTER_ADDR and NODE_RANK on each"
        )
    if pickles_for_processes(trainer):
        raise SettingError(
            "trainer.strategy must be ddp, or ddp_fork, for several processes: what a command has built can't be "
            "pickled for those that are spawned"
        )
    processors = os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > max(8, 2 * processors):
        raise SettingError(
            f"trainer.devices must be at most {max(8, 2 * processors)} on this machine with {processors} processors, "
            f"but is {trainer.num_devices}"
        )


def within_memory(setting: str) -> TorchFunctionMode:
    """Returns a context that rejects tensors larger than this machine's memory before they are allocated.

    Args:
        setting: Name of the setting whose object is being created, for error messages.

    Returns:
        The context, which raises a SettingError with the tensor's size.
    """
    return _WithinMemory(setting)


# The factory functions whose first argument is the size, unlike arange.
_MAKERS = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}


class _WithinMemory(TorchFunctionMode):
    def __init__(self, setting: str) -> None:
        super().__init__()
        self.setting = setting
        self.memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _MAKERS and torch.device(kwargs.get("device") or "cpu").type == "cpu":
            size = kwargs.get("size", args if args and isinstance(args[0], int) else (*args, ())[0])
            if isinstance(size, (tuple, list)) and all(isinstance(length, int) for length in size):
                self.check(size, kwargs.get("dtype") or torch.get_default_dtype())
        return func(*args, **kwargs)

    def check(self, size: Sequence[int], dtype: torch.dtype) -> None:
        wanted = math.prod(size) * dtype.itemsize
        # The width of a layer, caught before its weight matrix is created.
        is_too_wide = len(size) == 1 and size[0] > _WIDEST
        if wanted > self.memory or is_too_wide:
            found = f"a tensor of {' × '.join(f'{length:,}' for length in size)}, {wanted / _GIB:,.0f} GiB"
            limit = f"this machine's {self.memory / _GIB:.0f} GiB of memory"
            raise SettingError(f"{self.setting} must fit into {limit}, but has {found}")
