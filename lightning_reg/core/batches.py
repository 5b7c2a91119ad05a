"""Reading and replacing parts of somebody else's batch, whatever container it is."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_reg.settings import SettingError

__all__ = ["Key", "check_key", "number_of_rows", "part_of", "repeated", "rows_of", "with_parts"]

Key = int | str | tuple[Callable[[Any], Tensor], Callable[[Any, Tensor], Any]]
"""Where a part of a batch is: an index, a name, or a getter and a setter, which returns a batch with another part."""


def check_key(name: str, key: Key) -> None:
    """Raises unless it can say where a part is.

    Args:
        name: The argument, as the user writes it.

    Raises:
        SettingError: With what is allowed.

    >>> check_key("input_key", 1.5)
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: input_key must be an index, a name or a getter and a setter, but is 1.5
    """
    pair = isinstance(key, Sequence) and not isinstance(key, str) and len(key) == 2 and all(map(callable, key))
    if isinstance(key, bool) or not (isinstance(key, int | str) or pair):
        raise SettingError(f"{name} must be an index, a name or a getter and a setter, but is {key!r}")


def part_of(batch: Any, key: Key, *, name: str) -> Tensor:
    """Returns one tensor of a batch.

    Args:
        batch: A list, tuple, named tuple, mapping, data class, or any object with attributes. A tensor is a batch of
            one part.
        name: The argument that says so, for messages.

    Raises:
        SettingError: If it isn't there, or no tensor.

    >>> import torch
    >>> part_of({"x": torch.ones(2)}, "y", name="input_key")
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: input_key must be one of 'x', the batch's keys, but is 'y'
    """
    if isinstance(batch, Tensor) and not isinstance(key, tuple | list):
        batch = (batch,)
    try:
        if isinstance(key, tuple | list):
            part = key[0](batch)
        elif isinstance(key, str) and not isinstance(batch, Mapping):
            part = getattr(batch, key)
        else:
            part = batch[key]
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise SettingError(f"{name} must be {_there_is(batch)}, but is {key!r}") from error
    if not isinstance(part, Tensor):
        found = "nothing" if part is None else f"a {type(part).__name__}"
        raise SettingError(f"{name} must lead to a tensor, but at {key!r} the batch has {found}")
    return part


def with_parts(batch: Any, parts: Sequence[tuple[Key, Tensor]]) -> Any:
    """Returns a batch of the same kind with other parts; the one that is given stays as it is.

    Args:
        batch: As for :func:`part_of`.
        parts: Keys and what is put there.

    >>> import torch
    >>> with_parts([0, "kept"], [(0, torch.tensor(7))])
    [tensor(7), 'kept']
    """
    for key, value in parts:
        batch = _with_part(batch, key, value)
    return batch


def _with_part(batch: Any, key: Key, value: Tensor) -> Any:
    if isinstance(key, tuple | list):
        return key[1](batch, value)
    if isinstance(batch, Tensor):
        return value
    if isinstance(batch, tuple):
        index = batch._fields.index(key) if isinstance(key, str) else key  # type: ignore[attr-defined]  # a named tuple
        parts = list(batch)
        parts[index] = value
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type) and isinstance(key, str):
        changed = copy.copy(batch)
        object.__setattr__(changed, key, value)  # a frozen one, too
        return changed
    changed = copy.copy(batch)
    if isinstance(key, str) and not isinstance(batch, Mapping):
        setattr(changed, key, value)
    else:
        changed[key] = value
    return changed


def _there_is(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"one of {', '.join(map(repr, batch))}, the batch's keys"
    if hasattr(batch, "_fields"):
        return f"one of {', '.join(map(repr, batch._fields))}, the batch's fields, or an index below {len(batch)}"
    if dataclasses.is_dataclass(batch):
        return f"one of {', '.join(repr(field.name) for field in dataclasses.fields(batch))}, the batch's fields"
    if isinstance(batch, list | tuple):
        return f"an index below {len(batch)}, the number of the batch's parts"
    return f"where the tensor is in a batch that is a {type(batch).__name__}; a getter and a setter can say it"


def repeated(batch: Any, times: int, *, technique: str) -> Any:
    """Returns a batch that has every sample several times: all of them, and all of them again.

    Args:
        batch: Tensors with one row a sample, in lists, tuples, mappings or data classes.
        times: How often it has each, at least 1.
        technique: That asks, for the message.

    Raises:
        SettingError: If it has no tensors, or they don't have as many rows.

    >>> repeated({"x": torch.tensor([1, 2])}, 2, technique="RDrop")
    {'x': tensor([1, 2, 1, 2])}
    """
    number_of_rows(batch, doing=f"{technique} can repeat them")
    return apply_to_collection(batch, Tensor, lambda tensor: torch.cat([tensor] * times))


def number_of_rows(batch: Any, *, doing: str) -> int:
    """Returns how many samples a batch has.

    Args:
        batch: As for :func:`repeated`.
        doing: What is to be possible, for the message.

    Raises:
        SettingError: If it has no tensors, or they don't have as many rows.

    >>> number_of_rows([torch.ones(3, 2), torch.ones(3)], doing="they can be chosen")
    3
    """
    shapes: list[tuple[int, ...]] = []
    apply_to_collection(batch, Tensor, lambda tensor: shapes.append(tuple(tensor.shape)))
    if not shapes or len({shape[:1] for shape in shapes}) > 1 or not shapes[0]:
        found = (
            f"tensors of shapes {', '.join(map(str, shapes))}" if shapes else f"none: it is a {type(batch).__name__}"
        )
        raise SettingError(
            f"the batch must be made of tensors that have one row a sample, so that {doing}, but has {found}"
        )
    return shapes[0][0]


def rows_of(batch: Any, rows: Tensor) -> Any:
    """Returns a batch of the same kind with some of its samples.

    Args:
        batch: For which there is a :func:`number_of_rows`.
        rows: Indices of the samples.

    >>> rows_of({"x": torch.tensor([1, 2, 3])}, torch.tensor([0, 2]))
    {'x': tensor([1, 3])}
    """
    return apply_to_collection(batch, Tensor, lambda tensor: tensor.index_select(0, rows.to(tensor.device)))
