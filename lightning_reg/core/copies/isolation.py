"""Evaluating a module without side effects: a copy runs in its place, and is dropped."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torchmetrics import Metric

from lightning_reg.core.copies.copying import deep_copy
from lightning_reg.core.lightning import attach, callbacks_of, silent_view
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.settings import SettingError

__all__ = ["copy_module", "isolated"]


@contextmanager
def isolated(
    trainer: Trainer, module: LightningModule, name: str, log: Callable[..., Any]
) -> Iterator[LightningModule]:
    """Yields a copy of a module to evaluate, in evaluation mode and with its metrics reset.

    Nothing that is done to the copy reaches the module: they share no tensor, container or object. The copy's
    ``trainer`` is a view of the trainer with silent loggers and with a strategy that runs the copy:
    ``copied.trainer.strategy.validation_step(...)``. The global random states are restored afterwards. The copy takes
    the memory of one more module while it exists; compiled parts run uncompiled.

    Args:
        trainer: Trainer in a fit or a validation.
        name: Name of the calling technique, for the error message.
        log: Function that replaces the copy's ``log``, with its arguments.

    Raises:
        SettingError: If the module holds an object that can't be copied; the message names it.
    """
    view = silent_view(trainer)
    copied = copy_module(trainer, module, name, view)
    attach(view, copied)
    vars(copied)["log"] = log
    copied.eval()
    for part in copied.modules():
        if isinstance(part, Metric):
            part.reset()
    # A copy would be compiled anew each time.
    compiling = "torch._dynamo" in sys.modules
    with isolate_rng(), torch.compiler.set_stance("force_eager") if compiling else nullcontext():
        yield copied


def copy_module(trainer: Trainer, module: LightningModule, name: str, view: Trainer | None = None) -> LightningModule:
    """Returns a copy of a module that shares only the trainer with it, so that nothing done to it has side effects.

    Args:
        name: Name of the calling technique, for the error message.
        view: Trainer that the copy refers to; ``trainer`` itself if None.

    Raises:
        SettingError: If the module holds an object that can't be copied; the message names it.
    """
    view = trainer if view is None else view
    # Our own callbacks and the optimizers have no part in an evaluation, and may hold as much as the module.
    shared: list[Any] = [Run.of(trainer), *trainer.optimizers, *_ours(trainer)]
    stand_ins = {id(part): (part, part) for part in shared if part is not None}
    stand_ins[id(trainer)] = (trainer, view)
    stand_ins[id(trainer.strategy)] = (trainer.strategy, view.strategy)
    try:
        copied: LightningModule = deep_copy(module, stand_ins)
    except Exception as error:
        path, value, reason = _culprit(module, stand_ins) or ("module", module, error)
        raise SettingError(
            f"{path} must be something that can be copied with {name}, which evaluates a copy of the module, but is "
            f"{type(value).__name__} ({type(reason).__name__}: {reason}); keep it outside of the module, or leave "
            f"{name} out"
        ) from error
    return copied


def _ours(trainer: Trainer) -> list[Callback]:
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, Technique)]


def _culprit(module: nn.Module, stand_ins: dict[int, tuple[Any, Any]]) -> tuple[str, Any, Exception] | None:
    """Returns the name of the attribute that can't be copied, the deepest one, with its value and its error."""
    for prefix, part in reversed(list(module.named_modules())):
        for attribute, value in vars(part).items():
            if isinstance(value, (nn.Module, Trainer)) or attribute in ("_modules", "_trainer"):
                continue
            try:
                deep_copy(value, {**stand_ins, id(module): (module, module)})
            except Exception as error:  # of whatever type
                return ".".join(filter(None, ("module", prefix, attribute))), value, error
    return None
