"""Checks that a run can go on from a checkpoint: its states must have the layout of the run's own."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.core.layout import check_declared, check_layout, check_values
from lightning_reg.core.lightning import callbacks_of, twins
from lightning_reg.settings import SettingError

__all__ = ["Checkpoint", "check_callbacks", "check_can_go_on", "check_data", "progress_of"]

Checkpoint = Mapping[str, Any]

_KNOWN = ("lightning", "pytorch_lightning", "lightning_reg", "torch")
"""Packages whose callbacks, optimizers and schedules keep the layout of their state in the course of a run."""
_LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")


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


def check_callbacks(path: str, checkpoint: Checkpoint, trainer: Trainer) -> None:
    """Checks the saved states of Lightning's callbacks and ours, before they are restored.

    Args:
        path: File of the checkpoint, for error messages.
        checkpoint: Its content; empty if it isn't a local file.
        trainer: Trainer of the run.

    Raises:
        SettingError: If a state holds something else than the callback's own.
    """
    saved = checkpoint.get("callbacks", {})
    for callback in callbacks_of(trainer):
        if callback.state_key in saved and _is_known(callback):
            name = f"ckpt_path {path!r} can't be restored: its callbacks.{callback.state_key}"
            check_values(name, saved[callback.state_key])
            check_layout(name, saved[callback.state_key], callback.state_dict())
            check_declared(name, saved[callback.state_key], type(callback))


def check_data(path: str, checkpoint: Checkpoint, data: LightningDataModule) -> None:
    """Checks the saved state of a data module of ours, before it is restored.

    Args:
        path: File of the checkpoint, for error messages.
        checkpoint: Its content; empty if it isn't a local file.
        data: Data module that has been set up.

    Raises:
        SettingError: If a part of the state is of another kind.
    """
    name = type(data).__qualname__
    if name in checkpoint and _is_known(data):
        # What is in the parts may differ, and is compared by the data module itself.
        kinds = {key: type(part)() for key, part in data.state_dict().items() if isinstance(part, (dict, list))}
        check_layout(f"ckpt_path {path!r} can't be restored: its {name}", checkpoint[name], kinds)


def check_can_go_on(path: str, checkpoint: Checkpoint, trainer: Trainer) -> None:
    """Checks that training can resume from a checkpoint, before the state of the training is restored.

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
    _check_optimizers(path, checkpoint["optimizer_states"], trainer.optimizers)
    own_loops = {name: getattr(trainer, name).state_dict() for name in _LOOPS}
    counted = {"epoch": 0, "global_step": 0, "loops": own_loops}
    check_layout(f"ckpt_path {path!r} can't be restored: its state", checkpoint, counted, _check_count)
    _check_batches(path, checkpoint["loops"]["fit_loop"].get("epoch_loop.batch_progress", {}))
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    others = {
        "optimizer_states": [_groups_now(optimizer) for optimizer in trainer.optimizers],
        "lr_schedulers": [schedule.state_dict() if _is_known(schedule) else {} for schedule in schedules],
    }
    check_layout(f"ckpt_path {path!r} can't be restored: its state", checkpoint, others)
    keeps_its_own = any(isinstance(callback, twins(StochasticWeightAveraging)) for callback in callbacks_of(trainer))
    if len(saved := checkpoint.get("lr_schedulers", ())) != len(schedules) and not keeps_its_own:
        rank_zero_warn(
            f"ckpt_path {path!r} holds the states of {len(saved)} learning rate schedules, and this run has "
            f"{len(schedules)}: the rate doesn't go on as it did"
        )


def _check_batches(path: str, progress: Mapping[str, Any]) -> None:
    """Raises if an epoch has counted more batches than the run, or finished more than it has begun."""
    counts = {when: progress.get(when, {}) for when in ("current", "total")}
    for when, now in counts.items():
        begun = now.get("ready", math.inf)
        if now.get("completed", 0) > begun or (when == "current" and begun > counts["total"].get("ready", math.inf)):
            raise SettingError(
                f"ckpt_path {path!r} can't be restored: its state.loops.fit_loop.epoch_loop.batch_progress has more "
                f"batches in {when} than can be"
            )


def _groups_now(optimizer: Optimizer) -> Mapping[str, Any]:
    """Returns the layout of an optimizer's state, whose numbers may be tensors or not."""
    groups = [
        {name: value for name, value in group.items() if name != "params" and not isinstance(value, Tensor)}
        for group in optimizer.param_groups
    ]
    return {"state": {}, "param_groups": groups if _is_known(optimizer) else []}


def _is_known(part: object) -> bool:
    return type(part).__module__.partition(".")[0] in _KNOWN


def _check_optimizers(path: str, states: Sequence[Any], optimizers: Sequence[Optimizer]) -> None:
    holds = f"ckpt_path {path!r} holds"
    if len(states) != len(optimizers):
        raise SettingError(f"{holds} the states of {len(states)} optimizers, but the model has {len(optimizers)}")
    for optimizer, state in zip(optimizers, states, strict=True):
        groups = state.get("param_groups") if isinstance(state, Mapping) else None
        if not groups or not all(isinstance(group, Mapping) for group in groups):
            raise SettingError(f"{holds} no state of an optimizer's parameters")
        saved, present = set(groups[0]), set(optimizer.param_groups[0])
        # Newer versions of torch add settings: the kinds differ only if each has settings that the other lacks.
        if saved - present and present - saved:
            raise SettingError(
                f"{holds} the state of another optimizer than {type(optimizer).__name__}: it has "
                f"{', '.join(sorted(saved - present))}, and no {', '.join(sorted(present - saved))}"
            )
        if any(isinstance(group.get("lr"), (int, float)) and group["lr"] < 0 for group in groups):
            raise SettingError(f"{holds} an optimizer's state with an lr below 0")
        if any(isinstance(group.get("lr"), (int, float)) and group["lr"] == math.inf for group in groups):
            raise SettingError(f"{holds} an optimizer's state with an infinite lr")
        lists = [group.get("params") for group in groups]
        known = [parameter for parameters in lists if isinstance(parameters, list) for parameter in parameters]
        unknown = [key for key in state["state"] if key not in known] if isinstance(state.get("state"), Mapping) else []
        if known and unknown and len(groups) == len(optimizer.param_groups):
            raise SettingError(f"{holds} an optimizer's state of {unknown[0]!r}, which is none of its parameters")
        _check_moments(holds, state["state"])


def _check_moments(holds: str, states: Any) -> None:
    """Raises if a state of a parameter, such as a moving average of its gradients, has NaNs or no values."""
    for key, state in states.items() if isinstance(states, Mapping) else ():
        for name, value in state.items() if isinstance(state, Mapping) else ():
            if isinstance(value, Tensor) and (value.is_meta or value.isnan().any()):
                fault = "without values" if value.is_meta else "with NaNs"
                raise SettingError(f"{holds} an optimizer's state {fault}: {name} of parameter {key}")


def _check_count(name: str, saved: Any, _: float) -> None:
    if isinstance(saved, bool) or not isinstance(saved, int) or not 0 <= saved <= sys.maxsize:
        raise SettingError(f"{name} is {saved!r}, which counts nothing")
