"""Reading and replacing parts of a batch, whatever container it is."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.memory import is_oom_error
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_reg.settings import SettingError

__all__ = [
    "MISFITS",
    "Key",
    "check_key",
    "dense_part_of",
    "floating_part_of",
    "is_dense",
    "look_at",
    "number_of_rows",
    "part_of",
    "reason_of",
    "repeated",
    "rows_of",
    "step_with_repeated",
    "whole_parts",
    "with_parts",
]

MISFITS = (RuntimeError, ValueError, IndexError, AssertionError)
"""What networks raise where they are handed a batch that they can't take."""

Key = int | str | tuple[Callable[[Any], Tensor], Callable[[Any, Tensor], Any]]
"""Position of a part in a batch: an index, a name, or a getter and a setter, which returns a batch with a new part."""


def check_key(name: str, key: Key) -> None:
    """Raises if a key is invalid.

    Args:
        name: Name of the argument, for the error message.

    Raises:
        SettingError: If it is no index, name, or pair of getter and setter.

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
        name: Name of the argument that holds ``key``, for error messages.

    Raises:
        SettingError: If there is no such part, or it isn't a tensor.

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
        _refuse_iterator(batch, "a batch", doing=f"{name} can lead to a part of it")
        raise SettingError(f"{name} must be {_there_is(batch)}, but is {key!r}") from error
    if not isinstance(part, Tensor):
        found = "nothing" if part is None else f"a {type(part).__name__}"
        raise SettingError(f"{name} must lead to a tensor, but at {key!r} the batch has {found}")
    return part


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is neither sparse nor nested."""
    return tensor.layout == torch.strided and not tensor.is_nested


def dense_part_of(batch: Any, key: Key, *, name: str) -> Tensor:
    """Returns one tensor of a batch as :func:`part_of` does, but no sparse or nested one.

    >>> dense_part_of([torch.eye(2).to_sparse()], 0, name="input_key")
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: input_key must lead to a dense tensor, but at 0 the batch has one of layout ...
    """
    part = part_of(batch, key, name=name)
    if not is_dense(part):
        raise SettingError(f"{name} must lead to a dense tensor, but at {key!r} the batch has {_layout_of(part)}")
    return part


def floating_part_of(batch: Any, key: Key, *, name: str, technique: str) -> Tensor:
    """Returns one tensor of a batch as :func:`dense_part_of` does, of a floating dtype and with one row a sample.

    Args:
        technique: Name of the calling technique, for the error message.
    """
    part = dense_part_of(batch, key, name=name)
    if not part.is_floating_point() or not part.ndim:
        raise SettingError(
            f"{name} must lead to inputs of a floating dtype with one row a sample, but {technique} finds {part.dtype} "
            f"of shape {tuple(part.shape)}"
        )
    return part


def _layout_of(tensor: Tensor) -> str:
    return "a nested one" if tensor.is_nested else f"one of layout {tensor.layout}"


def with_parts(batch: Any, parts: Sequence[tuple[Key, Tensor]]) -> Any:
    """Returns a batch of the same type with some parts replaced; the given batch isn't changed.

    Args:
        batch: Batch as for :func:`part_of`.
        parts: Pairs of a key and the new tensor.

    >>> import torch
    >>> with_parts([0, "kept"], [(0, torch.tensor(7))])
    [tensor(7), 'kept']
    """
    for key, value in parts:
        batch = _with_part(batch, key, value)
    return batch


def _with_part(batch: Any, key: Key, value: Tensor) -> Any:
    if isinstance(key, tuple | list):
        changed = key[1](batch, value)
        if changed is None:  # as of dict.__setitem__
            raise SettingError(
                "the setter of a key, such as input_key, must return the batch with its new part, but returns None"
            )
        return changed
    if isinstance(batch, Tensor):
        return value
    if isinstance(batch, tuple):
        index = batch._fields.index(key) if isinstance(key, str) else key  # type: ignore[attr-defined]  # a named tuple
        parts = list(batch)
        parts[index] = value
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type) and isinstance(key, str):
        changed = copy.copy(batch)
        object.__setattr__(changed, key, value)  # also of a frozen one
        return changed
    changed = copy.copy(batch)
    if isinstance(key, str) and not isinstance(batch, Mapping):
        setattr(changed, key, value)
    else:
        changed[key] = value
    return changed


def _refuse_iterator(batch: Any, wanted: str, *, doing: str) -> None:
    if isinstance(batch, Iterator):
        raise SettingError(f"training_step must take {wanted}, not a dataloader_iter, so that {doing}")


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
    """Returns a batch that has every sample several times: all samples, then all of them again.

    Args:
        batch: Tensors with one row per sample, in lists, tuples, mappings or data classes. Beside tensors, lists of
            texts or numbers that have one for each sample are repeated, too, and tuples of texts.
        times: Number of repetitions, at least 1.
        technique: Name of the calling technique, for the error message.

    Raises:
        SettingError: If the batch has no tensors, or tensors with different numbers of rows.

    >>> repeated({"x": torch.tensor([1, 2])}, 2, technique="RDrop")
    {'x': tensor([1, 2, 1, 2])}
    """
    count = number_of_rows(batch, doing=f"{technique} can repeat them")
    return _with_rows(batch, count, lambda tensor: torch.cat([tensor] * times), lambda values: values * times)


def reason_of(error: Exception) -> str:
    """Returns an error's class and the first line of what it says, if it says anything; a bare assertion doesn't."""
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def step_with_repeated(
    training_step: Callable[..., Any], batch: Any, *, times: int, technique: str
) -> Callable[..., Any]:
    """Returns a training step that runs with a repeated batch, and says so where that is what it fails of.

    For the first step alone: later ones fail of something else.

    Args:
        training_step: Function of a batch and other arguments.
        batch: Batch that is repeated; a step that fails runs once more with this one, to see whether it fails anyway.
        times: Number of repetitions.
        technique: Name of the calling technique, for the error message.
    """

    def takes_it_once(*args: Any, **kwargs: Any) -> bool:
        try:
            with torch._C.DisableTorchFunction():  # modes that watch the losses of the repeated batch
                training_step(batch, *args, **kwargs)
        except Exception:
            return False
        return True

    def step(larger: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return training_step(larger, *args, **kwargs)
        except MISFITS as error:
            is_other = isinstance(error, SettingError) or is_oom_error(error)
            if is_other or not takes_it_once(*args, **kwargs):
                raise
            reason = reason_of(error)
            if whole := whole_parts(batch):
                raise SettingError(
                    f"the batch must be made of tensors that have one row a sample, so that {technique} can repeat "
                    f"them, but has {whole}, and the training step fails where all else is repeated: {reason}"
                ) from error
            raise SettingError(
                f"training_step must take batches of any size with {technique}, which repeats each of them {times} "
                f"times, but fails with such a batch alone: {reason}"
            ) from error

    return step


def number_of_rows(batch: Any, *, doing: str) -> int:
    """Returns the number of samples in a batch.

    Args:
        batch: Batch as for :func:`repeated`.
        doing: Clause that says what the rows are needed for, for the error message.

    Raises:
        SettingError: If the batch has no tensors, or tensors with different numbers of rows.

    >>> number_of_rows([torch.ones(3, 2), torch.ones(3)], doing="they can be chosen")
    3
    """
    _refuse_iterator(batch, "a batch of tensors that have one row a sample", doing=doing)
    shapes: list[tuple[int, ...]] = []

    def note(part: Any) -> None:
        if isinstance(part, PackedSequence):
            raise SettingError(
                f"the batch must be made of tensors that have one row a sample, so that {doing}, but has a "
                "PackedSequence; pack it in the module"
            )
        if not is_dense(part) and part.layout != torch.sparse_coo:  # whose rows can be joined and chosen
            raise SettingError(
                f"the batch must be made of dense tensors, so that {doing}, but has {_layout_of(part)}; convert it in "
                "the module"
            )
        shapes.append(tuple(part.shape))

    look_at(batch, (Tensor, PackedSequence), note)
    if not shapes or len({shape[:1] for shape in shapes}) > 1 or not shapes[0]:
        found = (
            f"tensors of shapes {', '.join(map(str, shapes))}" if shapes else f"none: it is a {type(batch).__name__}"
        )
        raise SettingError(
            f"the batch must be made of tensors that have one row a sample, so that {doing}, but has {found}"
        )
    return shapes[0][0]


def look_at(batch: Any, kinds: type | tuple[type, ...], look: Callable[[Any], None]) -> None:
    """Hands every part of a kind to a function. A class of a batch may check its fields, so they stay what they are."""

    def keep(part: Any) -> Any:
        look(part)
        return part

    apply_to_collection(batch, kinds, keep)


def whole_parts(batch: Any) -> str:
    """Returns what in a batch holds tensors, but can't be repeated or chosen by rows, in words; empty if nothing does.

    Args:
        batch: Batch as for :func:`repeated`. Graphs of other libraries, which bring a method ``to``, are such parts.
    """
    return " and ".join(f"a {name}" for name in dict.fromkeys(_whole_parts(batch)))


def _whole_parts(part: Any) -> Iterator[str]:
    if isinstance(part, Tensor):
        return
    fields = dataclasses.fields(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else ()
    values = [(field.init, getattr(part, field.name, None)) for field in fields]
    # What no constructor takes isn't replaced in a data class.
    if any(not init and isinstance(value, Tensor) for init, value in values):
        yield type(part).__name__
    elif isinstance(part, Mapping):
        yield from (name for value in part.values() for name in _whole_parts(value))
    elif isinstance(part, list | tuple):
        yield from (name for value in part for name in _whole_parts(value))
    elif fields:
        yield from (name for _, value in values for name in _whole_parts(value))
    elif not isinstance(part, type) and callable(getattr(part, "to", None)):
        yield type(part).__name__


def rows_of(batch: Any, rows: Tensor) -> Any:
    """Returns a batch of the same type with some of its samples.

    Args:
        batch: Batch as for :func:`repeated`.
        rows: Indices of the samples.

    >>> rows_of({"x": torch.tensor([1, 2, 3])}, torch.tensor([0, 2]))
    {'x': tensor([1, 3])}
    """
    count = number_of_rows(batch, doing="some of them can be chosen")
    return _with_rows(
        batch,
        count,
        lambda tensor: tensor.index_select(0, rows.to(tensor.device)),
        lambda values: type(values)(values[row] for row in rows.tolist()),
    )


def _with_rows(batch: Any, count: int, of_tensor: Callable[[Tensor], Tensor], of_values: Callable[[Any], Any]) -> Any:
    """Returns a batch whose tensors, and whose lists of one value for each of its samples, are replaced."""

    def change(part: Any) -> Any:
        if isinstance(part, Tensor):
            return of_tensor(part)
        if _has_value_for_each(part, count):
            return of_values(part)
        parts = [apply_to_collection(entry, (Tensor, list, tuple), change) for entry in part]
        return type(part)(*parts) if hasattr(part, "_fields") else type(part)(parts)

    return apply_to_collection(batch, (Tensor, list, tuple), change)


def _has_value_for_each(part: list[Any] | tuple[Any, ...], count: int) -> bool:
    """Whether a list has a text or a number for each sample; a tuple of numbers is a size."""
    plain = str | bytes | int | float if type(part) is list else str | bytes
    is_plain_type = type(part) in (list, tuple)
    return is_plain_type and 0 < len(part) == count and all(isinstance(entry, plain) for entry in part)
