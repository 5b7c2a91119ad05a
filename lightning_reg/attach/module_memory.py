"""What a module holds, remembered and put back."""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

__all__ = ["ModuleMemory"]


class ModuleMemory:
    """What modules, containers and plain tensors hold at this moment, however deep they lie in one another.

    Parameters aren't guarded.

    Args:
        module: Whose state is remembered.
        plain_tensors: Whether the values of tensors that are neither buffers nor a metric's are remembered, too. They
            may be large: somebody's whole data set.
    """

    def __init__(self, module: nn.Module, *, plain_tensors: bool = True) -> None:
        self._plain_tensors = plain_tensors
        self._seen: dict[int, Any] = {}  # holds them, so that an id isn't given twice
        self._undo: list[Callable[[], None]] = []
        self._visit(module, plain_tensors)

    def _visit(self, value: Any, tensors: bool) -> None:
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, nn.Module):
            self._visit(value._buffers, True)
            self._visit_mapping(vars(value), self._plain_tensors or isinstance(value, Metric))
        elif isinstance(value, dict):
            self._visit_mapping(value, tensors)
        elif isinstance(value, (list, deque)):
            self._visit_sequence(value, tensors)
        elif isinstance(value, set):
            before = set(value)
            self._undo += [value.clear, lambda: value.update(before)]
        elif isinstance(value, Tensor) and tensors and not isinstance(value, nn.Parameter) and not value.requires_grad:
            self._visit_tensor(value)

    def _visit_tensor(self, value: Tensor) -> None:
        before = value.clone()

        def undo() -> None:
            value.copy_(before)

        self._undo.append(undo)

    def _visit_mapping(self, mapping: dict[Any, Any], tensors: bool) -> None:
        before = dict(mapping)

        def undo() -> None:
            if list(mapping) != list(before) or any(mapping[key] is not before[key] for key in before):
                mapping.clear()
                mapping.update(before)

        self._undo.append(undo)
        for entry in before.values():
            self._visit(entry, tensors)

    def _visit_sequence(self, values: list[Any] | deque[Any], tensors: bool) -> None:
        before = list(values)

        def undo() -> None:
            values.clear()
            values.extend(before)

        self._undo.append(undo)
        for entry in before:
            self._visit(entry, self._plain_tensors)  # metrics add to their lists, and leave the entries alone

    @torch.no_grad()
    def restore(self) -> None:
        """Puts back everything."""
        for undo in self._undo:
            undo()
