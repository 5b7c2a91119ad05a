"""Holders of a module's Python state: reading, comparing and restoring the contents of objects."""

import functools
import io
import logging
import random
import threading
import types
from collections import deque
from collections.abc import Iterable, Iterator
from enum import Enum
from inspect import Signature
from operator import is_
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_reg.core.copies.copying import is_importable
from lightning_reg.core.lightning import twins
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.core.wrapping import MethodHold

__all__ = ["VALUES", "Holder", "holders_of", "is_unknown"]

# Objects without state of the module's: immutable values, and what the trainer and we look after.
VALUES = (type(None), bool, int, float, complex, str, bytes, range, torch.dtype, torch.device, torch.Size)
_OTHERS = (
    io.IOBase,
    type,
    types.ModuleType,
    types.CodeType,
    types.BuiltinFunctionType,
    Enum,
    Signature,
    threading.Thread,
)
_OURS = (Session, Run, MethodHold)
_TRAINERS = (logging.Logger, Trainer, Strategy, LightningDataModule, Logger, Callback, DataLoader)
_LARGE_ARRAY = 2**24  # bytes


class Holder:
    """One object, or the attributes of one, with its contents when it was last read.

    Args:
        path: Name of the object, for messages.
    """

    can_change = True

    def __init__(self, owner: Any, path: str) -> None:
        self.owner = owner
        self.path = path
        self.kept = self.read()
        self.is_new = True

    def read(self) -> Any:
        """Returns the present contents, in a new container."""
        return ()

    def is_same(self) -> bool:
        """Whether the present contents are identical to those kept."""
        return True

    def put_back(self) -> None:
        """Restores the contents that were kept."""

    def entries(self) -> Iterable[tuple[Any, str, Any]]:
        """Yields the contents that were kept: key (None if it can't be set by one), name and value."""
        return ()


class _Mapping(Holder):
    def read(self) -> Any:
        return dict(self.owner)

    def is_same(self) -> bool:
        before, now = self.kept, self.owner
        if len(before) != len(now):
            return False
        return not now or (all(map(is_, before.values(), now.values())) and self.has_same_keys())

    def has_same_keys(self) -> bool:
        """Whether the keys are identical, in the same order."""
        return all(map(is_, self.kept, self.owner))

    def put_back(self) -> None:
        self.owner.clear()
        self.owner.update(self.kept)

    def entries(self) -> Iterable[tuple[Any, str, Any]]:
        return ((key, f"{self.path}[{key!r}]", value) for key, value in self.kept.items())


class _ByName(_Mapping):
    def has_same_keys(self) -> bool:
        return [*self.kept] == [*self.owner.keys()]  # strings, whose lists are compared faster than one by one


class _Attributes(_ByName):
    """The attributes of an object, as ``vars`` returns them."""

    # What hooks keep is not the module's, and hooks are the user's way to see both passes. Parameters, buffers and
    # modules have holders of their own.
    hidden = frozenset(
        """
        _forward_hooks _forward_pre_hooks _backward_hooks _backward_pre_hooks _forward_hooks_with_kwargs
        _forward_pre_hooks_with_kwargs _forward_hooks_always_called _state_dict_hooks _state_dict_pre_hooks
        _parameters _buffers _modules _load_state_dict_pre_hooks _load_state_dict_post_hooks _trainer _compiler_ctx
        """.split()  # noqa: SIM905  # a list would take a line a word
    )

    def entries(self) -> Iterable[tuple[Any, str, Any]]:
        return ((name, f"{self.path}.{name}", value) for name, value in self.kept.items() if name not in self.hidden)


class _Children(_ByName):
    """Parameters, buffers or modules."""

    def entries(self) -> Iterable[tuple[Any, str, Any]]:
        return ((name, f"{self.path}.{name}", value) for name, value in self.kept.items())


class _Sequence(Holder):
    def read(self) -> Any:
        return list(self.owner)

    def is_same(self) -> bool:
        return len(self.kept) == len(self.owner) and all(map(is_, self.kept, self.owner))

    def put_back(self) -> None:
        self.owner.clear()
        self.owner.extend(self.kept)

    def entries(self) -> Iterable[tuple[Any, str, Any]]:
        return ((index, f"{self.path}[{index}]", value) for index, value in enumerate(self.kept))


class _Set(Holder):
    def read(self) -> Any:
        return set(self.owner)

    def is_same(self) -> bool:
        return bool(self.kept == self.owner)

    def put_back(self) -> None:
        self.owner.clear()
        self.owner.update(self.kept)

    def entries(self) -> Iterable[tuple[Any, str, Any]]:
        return ((None, f"{self.path}{{...}}", value) for value in self.kept)


class _Fixed(Holder):
    """An immutable object that may hold mutable ones."""

    can_change = False

    def entries(self) -> Iterable[tuple[Any, str, Any]]:
        owner = self.owner
        if isinstance(owner, types.MethodType):
            yield None, self.path, owner.__self__
        elif isinstance(owner, functools.partial):
            yield from ((None, self.path, value) for value in (owner.func, owner.args, owner.keywords))
        elif isinstance(owner, types.FunctionType):
            compiled = vars(owner).get("_torchdynamo_orig_callable")
            yield from ((None, self.path, value) for value in ([compiled] if compiled else owner.__closure__ or ()))
        else:
            yield from ((None, f"{self.path}[{index}]", value) for index, value in enumerate(owner))


class _Cell(Holder):
    """A variable of a closure."""

    def read(self) -> Any:
        try:
            return (self.owner.cell_contents,)
        except ValueError:  # not yet bound
            return ()

    def is_same(self) -> bool:
        now = self.read()
        return len(now) == len(self.kept) and all(map(is_, now, self.kept))

    def put_back(self) -> None:
        if self.kept:
            self.owner.cell_contents = self.kept[0]
        else:
            del self.owner.cell_contents

    def entries(self) -> Iterable[tuple[Any, str, Any]]:
        return ((None, self.path, value) for value in self.kept)


class _Slots(Holder):
    def _names(self) -> Iterator[str]:
        for kind in type(self.owner).__mro__:
            names = vars(kind).get("__slots__", ())
            yield from (names,) if isinstance(names, str) else names

    def read(self) -> Any:
        return {name: getattr(self.owner, name) for name in self._names() if hasattr(self.owner, name)}

    def is_same(self) -> bool:
        now = self.read()
        return now.keys() == self.kept.keys() and all(map(is_, now.values(), self.kept.values()))

    def put_back(self) -> None:
        for name in self._names():
            if name in self.kept:
                object.__setattr__(self.owner, name, self.kept[name])
            elif hasattr(self.owner, name):
                object.__delattr__(self.owner, name)

    def entries(self) -> Iterable[tuple[Any, str, Any]]:
        return ((None, f"{self.path}.{name}", value) for name, value in self.kept.items() if name != "__weakref__")


class _Bytes(Holder):
    """An array, which has no version counter."""

    def read(self) -> Any:
        return self.owner.copy()

    def is_same(self) -> bool:
        return False  # to compare costs as much as to copy

    def put_back(self) -> None:
        self.owner[...] = self.kept

    def entries(self) -> Iterable[tuple[Any, str, Any]]:
        return ((None, self.path, value) for value in self.kept.flat) if self.kept.dtype == object else ()


class _ByteArray(_Bytes):
    def put_back(self) -> None:
        self.owner[:] = self.kept

    def entries(self) -> Iterable[tuple[Any, str, Any]]:
        return ()


class _Stream(Holder):
    """A random number generator of the user's own."""

    def read(self) -> Any:
        owner = self.owner
        if isinstance(owner, torch.Generator):
            return owner.get_state()
        if isinstance(owner, random.Random):
            return owner.getstate()
        return owner.get_state() if isinstance(owner, np.random.RandomState) else owner.bit_generator.state

    def is_same(self) -> bool:
        return False

    def put_back(self) -> None:
        owner = self.owner
        if isinstance(owner, random.Random):
            owner.setstate(self.kept)
        elif isinstance(owner, np.random.Generator):
            owner.bit_generator.state = self.kept
        else:
            owner.set_state(self.kept)


_KINDS: tuple[tuple[type | tuple[type, ...], type[Holder]], ...] = (
    (dict, _Mapping),
    ((list, deque), _Sequence),
    (set, _Set),
    ((tuple, frozenset, types.MethodType, functools.partial), _Fixed),
    (types.CellType, _Cell),
    (bytearray, _ByteArray),
    ((torch.Generator, random.Random, np.random.Generator, np.random.RandomState), _Stream),
)


def holders_of(value: Any, path: str) -> list[Holder]:
    """Returns the holders of an object: none of a number or text, two of a dict that has attributes as well.

    Args:
        value: Any object but a tensor.
    """
    if isinstance(value, VALUES) or _is_others(value):
        return []
    if isinstance(value, types.FunctionType):
        return [] if is_importable(value) else [_Fixed(value, path)]
    if isinstance(value, np.ndarray):
        return [_Bytes(value, path)] if value.flags.writeable and value.nbytes <= _LARGE_ARRAY else []
    found: list[Holder] = [kind(value, path) for types_, kind in _KINDS if isinstance(value, types_)]
    if isinstance(value, nn.Module):
        attributes = vars(value)
        # A traced module has these in another one, which is an attribute of it.
        names = [name for name in ("_parameters", "_buffers", "_modules") if name in attributes]
        inner = [_Children(attributes[name], path) for name in names]
        return [_Attributes(attributes, path), *inner, *found]
    if hasattr(value, "__dict__"):
        found.append(_Attributes(value.__dict__, path))
    if any(vars(kind).get("__slots__") for kind in type(value).__mro__):
        found.append(_Slots(value, path))
    return found


def _is_others(value: Any) -> bool:
    home = type(value).__module__
    if isinstance(value, (*_OTHERS, *_OURS, *twins(*_TRAINERS))) or hasattr(type(value), "add_scalar"):
        return True
    is_internal = home.startswith(("torch._", "torch.distributed", "torch.utils.hooks"))
    return is_internal and not isinstance(value, (nn.Module, torch.Generator))


def is_unknown(value: Any) -> bool:
    """Whether an object has state that can't be restored: an iterator, a writable file, a large array."""
    if isinstance(value, io.IOBase):
        return value.writable()
    if isinstance(value, np.ndarray):
        return value.flags.writeable and value.nbytes > _LARGE_ARRAY
    return hasattr(type(value), "__next__") and not isinstance(value, (Tensor, nn.Module))
