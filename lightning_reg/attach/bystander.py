"""Running somebody's module between times, and leaving no trace of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_reg.attach.module_memory import ModuleMemory
from lightning_reg.core.wrapping import around

__all__ = ["without_a_trace"]


@contextmanager
def without_a_trace(trainer: Trainer, pl_module: LightningModule, log: Callable[..., Any]) -> Iterator[None]:
    """Whatever the module does in here, its state, modes and metrics, the loggers and random streams are as before.

    Parameters aren't guarded: nothing that only evaluates changes them.

    Args:
        trainer: Whose loggers are handed nothing.
        pl_module: That is run.
        log: Called in the place of ``pl_module.log``, with what is inside it first.
    """
    memory = ModuleMemory(pl_module)
    loggers = trainer.loggers
    handle = around(pl_module, "log", log)
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        with isolate_rng():
            yield
    finally:
        trainer.loggers = loggers
        handle.remove()
        memory.restore()
