"""Checks that a run can go on from a checkpoint: its states must have the layout of the run's own."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_reg.core.lightning import callbacks_of
from lightning_reg.settings import SettingError

__all__ = ["Checkpoint", "check_can_go_on", "progress_of"]

Checkpoint = Mapping[str, Any]


def progress_of(path: str, found: Checkpoint) -> tuple[int, int]:
    """Returns how many epochs and optimizer steps a checkpoint's run has had.

    Raises:
        SettingError: If the checkpoint doesn't say.
    """
    try:
        return int(found["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]), int(found["global_step"])
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__} {error}"
        raise SettingError(f"ckpt_path {path!r} doesn't say how far its run has come: {reason}") from error


def check_can_go_on(path: str, checkpoint: Checkpoint, trainer: Trainer) -> None:
    """Checks that training can resume from a checkpoint, before anything of it is restored.

    Args:
        path: File of the checkpoint, for error messages.
        checkpoint: Its content; empty if it isn't a local file.
        trainer: Trainer whose optimizers are created.

    Raises:
        SettingError: If its run has already reached ``max_epochs`` or ``max_steps``, had another kind of optimizer, or
            a state holds something else than the run's own.
    """
    if not checkpoint:
        return
    epochs, steps = progress_of(path, checkpoint)
    for name, limit, done in (("max_epochs", trainer.max_epochs, epochs), ("max_steps", trainer.max_steps, steps)):
        if limit is not None and 0 <= limit <= done:
            raise SettingError(f"trainer.{name} must be above {done}, which {path!r} has had, but is {limit}")
    _check_optimizers(path, checkpoint, trainer)
    for name, saved, own in _states(checkpoint, trainer):
        _check_layout(f"ckpt_path {path!r} can't be restored: its {name}", saved, own)


def _check_optimizers(path: str, checkpoint: Checkpoint, trainer: Trainer) -> None:
    states = checkpoint["optimizer_states"]
    if len(states) != len(trainer.optimizers):
        raise SettingError(
            f"ckpt_path {path!r} holds the states of {len(states)} optimizers, but the model has "
            f"{len(trainer.optimizers)}"
        )
    for optimizer, state in zip(trainer.optimizers, states, strict=True):
        groups = state.get("param_groups") if isinstance(state, Mapping) else None
        if not groups or not all(isinstance(group, Mapping) for group in groups):
            raise SettingError(f"ckpt_path {path!r} holds no state of an optimizer's parameters")
        if any(isinstance(group.get("lr"), (int, float)) and group["lr"] < 0 for group in groups):
            raise SettingError(f"ckpt_path {path!r} holds an optimizer's state with an lr below 0")
        saved, present = set(groups[0]), set(optimizer.param_groups[0])
        # Newer versions of torch add settings: the kinds differ only if each has settings that the other lacks.
        if saved - present and present - saved:
            raise SettingError(
                f"ckpt_path {path!r} holds the state of another optimizer than {type(optimizer).__name__}: it has "
                f"{', '.join(sorted(saved - present))}, and no {', '.join(sorted(present - saved))}"
            )


def _states(checkpoint: Checkpoint, trainer: Trainer) -> Iterator[tuple[str, Any, Any]]:
    """Yields each state of a checkpoint with its name and the state that the run has now."""
    yield "global_step", checkpoint["global_step"], 0
    yield "epoch", checkpoint.get("epoch", 0), 0
    loops = checkpoint["loops"]
    for name in ("fit_loop", "validate_loop", "test_loop", "predict_loop"):
        if name in loops:
            yield f"loops.{name}", loops[name], getattr(trainer, name).state_dict()
    for saved, optimizer in zip(checkpoint["optimizer_states"], trainer.optimizers, strict=True):
        yield "optimizer_states", saved, {**optimizer.state_dict(), "state": {}}
    for saved, config in zip(checkpoint.get("lr_schedulers", []), trainer.lr_scheduler_configs, strict=False):
        yield "lr_schedulers", saved, config.scheduler.state_dict()
    callbacks = checkpoint.get("callbacks", {})
    for callback in callbacks_of(trainer):
        if callback.state_key in callbacks:
            yield f"callbacks.{callback.state_key}", callbacks[callback.state_key], _state_now(callback)


def _state_now(callback: Callback) -> Mapping[str, Any]:
    try:
        return callback.state_dict()
    except Exception:  # somebody's callback may have no state before training
        return {}


def _check_layout(name: str, saved: Any, own: Any) -> None:
    """Raises if a state holds something else than the run's own; what has no value yet may become anything.

    Names that only one of the two has are left to whoever loads the state: other versions may have other names.
    """
    if isinstance(own, Mapping):
        _check_kind(name, saved, Mapping)
        for key in own:
            if key in saved:
                _check_layout(f"{name}.{key}", saved[key], own[key])
    elif isinstance(own, (list, tuple)):
        _check_kind(name, saved, Sequence)
        if len(saved) == len(own):
            for index, (old, new) in enumerate(zip(saved, own, strict=True)):
                _check_layout(f"{name}.{index}", old, new)
    elif isinstance(own, bool):
        _check_kind(name, saved, bool)
    elif isinstance(own, (int, float)):
        _check_number(name, saved, own)
    elif isinstance(own, (str, Tensor)):
        _check_kind(name, saved, str if isinstance(own, str) else Tensor)


def _check_kind(name: str, saved: Any, kind: type) -> None:
    if not isinstance(saved, kind) or (kind is Sequence and isinstance(saved, str)):
        raise SettingError(f"{name} is a {type(saved).__name__}, not a {kind.__name__.lower()}")


def _check_number(name: str, saved: Any, own: float) -> None:
    value = saved.item() if isinstance(saved, Tensor) and saved.numel() == 1 else saved
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingError(f"{name} is a {type(saved).__name__}, not a number")
    is_count = isinstance(own, int) and own >= 0
    if (math.isnan(value) and not math.isnan(own)) or (is_count and not 0 <= value <= sys.maxsize):
        raise SettingError(f"{name} is {value}, which no run has had")
