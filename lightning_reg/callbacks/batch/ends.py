"""Tensors that the training step sees, and the two ends behind each of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.utilities.memory import is_oom_error
from torch import Tensor
from torch.overrides import resolve_name

__all__ = [
    "Known",
    "Pair",
    "copy_like",
    "end_of",
    "ends_may_differ",
    "flat",
    "memory_of",
    "name_of",
    "numbers_beside",
    "same_view",
    "tensors",
]


@dataclass(frozen=True)
class Pair:
    """A tensor that the training step sees, with the two ends behind it.

    Attributes:
        value: Targets, or values computed from them; for losses, the interpolation of the two ends.
        own: Value for the batch's own targets; None if only the interpolation is known.
        partners: Value for the targets of their partners.
        is_by_hand: Whether no loss of torch's is among what ``value`` was computed from.
        version: Version counter of ``value`` when it was recorded.
        has_gradient: Whether ``value`` required a gradient then: the result of a user's autograd function doesn't yet.
    """

    value: Tensor
    own: Tensor | None
    partners: Tensor | None
    is_by_hand: bool = False
    version: int = field(init=False)
    has_gradient: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", _version(self.value))
        object.__setattr__(self, "has_gradient", self.value.requires_grad)

    def is_changed(self) -> bool:
        """Whether ``value`` was changed since, without its two ends."""
        return _version(self.value) != self.version or self.value.requires_grad != self.has_gradient


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # inference tensors have no version counter


class Known:
    """Tensors of a training step that were computed from its targets, by id.

    The tensors are kept alive, so that no id is reused.

    Attributes:
        targets: Targets, and what was computed from them without a loss.
        losses: Losses, and what was computed from them.
        lost: What was computed from targets, but not from their partners, each with the name of the function.
        unmixed: What was computed from losses, likewise.
    """

    def __init__(self) -> None:
        self.targets: dict[int, Pair] = {}
        self.losses: dict[int, Pair] = {}
        self.lost: dict[int, tuple[Tensor, str]] = {}
        self.unmixed: dict[int, tuple[Tensor, str]] = {}

    def ends(self, args: Any, kwargs: dict[str, Any], *, partners: bool) -> tuple[Any, dict[str, Any]]:
        """Returns arguments with one of the two ends in place of their interpolation."""
        maps = self.losses, self.targets
        return (
            tuple(end_of(value, *maps, partners=partners) for value in args),
            {name: end_of(value, *maps, partners=partners) for name, value in kwargs.items()},
        )


def end_of(value: Any, *followed: dict[int, Pair], partners: bool) -> Any:
    """Returns an argument with one of the two ends in place of what the training step sees."""
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        entries = (end_of(entry, *followed, partners=partners) for entry in value)
        return type(value)(entries) if type(value) in (list, tuple) else value
    pair = next((pairs[id(value)] for pairs in followed if id(value) in pairs), None)
    if pair is None:
        return value
    return pair.partners if partners else pair.own


@contextlib.contextmanager
def ends_may_differ() -> Iterator[None]:
    """Passes over what fails: what holds for the labels of one end needn't for those of the other."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:
        if is_oom_error(error):
            raise


def memory_of(tensor: Tensor) -> Tensor:
    """Returns the tensor whose memory a view shows; the tensor itself if it is none."""
    return tensor if tensor._base is None else tensor._base


def copy_like(memory: Tensor, values: Tensor) -> Tensor | None:
    """Returns a differentiable copy of values whose views are those of another tensor; None if it can't have these."""
    copy = torch.empty_like(memory)
    if values.shape != memory.shape or copy.stride() != memory.stride() or memory.storage_offset():
        return None
    with torch.enable_grad():  # what is written without a graph leaves that of what was there before
        return copy.copy_(values)


def same_view(copy: Tensor, view: Tensor) -> Tensor:
    """Returns the view of a copy that ``view`` is of the memory that was copied."""
    return copy if view._base is None else copy.as_strided(view.shape, view.stride(), view.storage_offset())


def flat(values: Iterable[Any]) -> list[Any]:
    """Returns values, with lists and tuples among them flattened by one level."""
    return [entry for value in values for entry in (value if isinstance(value, list | tuple) else (value,))]


def numbers_beside(values: Iterable[Any], *followed: dict[int, Pair]) -> list[Any]:
    """Returns numbers and arrays that may be computed from values taken out: those that aren't followed themselves."""
    return [
        value
        for value in flat(values)
        if isinstance(value, float) or (hasattr(value, "__array__") and not getattr(value, "requires_grad", False))
        if not any(id(value) in pairs for pairs in followed)
    ]


def tensors(result: Any) -> list[Tensor]:
    """Returns the tensors among what a function has returned."""
    return [value for value in flat((result,)) if isinstance(value, Tensor)]


def name_of(func: Callable[..., Any]) -> str:
    """Returns a function's name without its module's."""
    return str(resolve_name(func) or getattr(func, "__name__", func)).rsplit(".", 1)[-1]
