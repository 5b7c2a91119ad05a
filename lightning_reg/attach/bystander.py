"""Running somebody's module between times, and leaving no trace of it."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_reg.attach.wrapping import around

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
    memory = _Memory()
    memory.visit(pl_module)
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


class _Memory:
    """What modules, containers and plain tensors held, however deep they lie in one another."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}  # holds them, so that an id isn't given twice
        self._undo: list[Callable[[], None]] = []

    def visit(self, value: Any) -> None:
        """Remembers what a value holds now.

        Args:
            value: Anything; what is neither module, container nor tensor is left to itself.
        """
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, nn.Module):
            self._visit_mapping(vars(value))
        elif isinstance(value, dict):
            self._visit_mapping(value)
        elif isinstance(value, (list, deque)):
            self._visit_sequence(value)
        elif isinstance(value, set):
            before = set(value)
            self._undo += [value.clear, lambda: value.update(before)]
        elif isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and not value.requires_grad:
            self._visit_tensor(value)

    def _visit_tensor(self, value: Tensor) -> None:
        before = value.clone()

        def undo() -> None:
            value.copy_(before)

        self._undo.append(undo)

    def _visit_mapping(self, mapping: dict[Any, Any]) -> None:
        before = dict(mapping)

        def undo() -> None:
            if list(mapping) != list(before) or any(mapping[key] is not before[key] for key in before):
                mapping.clear()
                mapping.update(before)

        self._undo.append(undo)
        for entry in before.values():
            self.visit(entry)

    def _visit_sequence(self, values: list[Any] | deque[Any]) -> None:
        before = list(values)

        def undo() -> None:
            values.clear()
            values.extend(before)

        self._undo.append(undo)
        for entry in before:
            self.visit(entry)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts back everything."""
        for undo in self._undo:
            undo()
