"""A deep copy that shares no mutable state, including objects that ``copy.deepcopy`` shares or refuses."""

import copy
import csv
import functools
import io
import pickle
import sys
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, WeakValueDictionary, ref

import torch
from lightning.pytorch.loggers.logger import DummyExperiment, DummyLogger, Logger
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_reg.core.lightning import twins
from lightning_reg.core.wrapping import MethodHold

__all__ = ["WRITTEN", "deep_copy", "is_importable", "silent_stand_in"]

WRITTEN = object()  # marks objects that are pickled into the stream and read from it again
_IMMUTABLE = frozenset({type(None), bool, int, float, complex, str, bytes, range, torch.dtype, torch.Size})
_SHARED = (type, types.ModuleType, types.CodeType, types.GetSetDescriptorType, types.MethodDescriptorType)
_CSV_WRITER = type(csv.writer(io.StringIO()))
_LOCKS: dict[type, Callable[[], Any]] = {type(make()): make for make in (threading.Lock, threading.RLock)}


def deep_copy(value: Any, stand_ins: Mapping[int, tuple[Any, Any]]) -> Any:
    """Returns a copy of an object and of everything reachable from it, closures and bound methods included.

    ``copy.deepcopy`` shares functions, and so whatever their closures hold; it refuses tensors with a history,
    compiled modules, locks and open files. Here tensors with a history are detached, compiled code runs uncompiled, and
    loggers, TensorBoard writers and writable files become silent. Classes, modules, importable functions and process
    groups are shared.

    Args:
        stand_ins: Replacements of objects that are not to be copied: by ``id``, the object and its replacement (the
            object itself if it is to be shared).

    Raises:
        Exception: The error of an object that can't be copied, of whatever type.
    """
    stream = io.BytesIO()
    with torch.no_grad(), torch.inference_mode(False):
        writer = _Writer(stream, stand_ins)
        writer.dump(value)
        stream.seek(0)
        return _Reader(stream, writer.handed_over).load()


class _Reader(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, handed_over: list[Any]) -> None:
        super().__init__(stream)
        self._handed_over = handed_over

    def persistent_load(self, pid: int) -> Any:
        return self._handed_over[pid]


class _Writer(pickle.Pickler):
    """A pickler, which traverses the graph of objects; those that it can't write are passed beside the stream."""

    def __init__(self, stream: io.BytesIO, stand_ins: Mapping[int, tuple[Any, Any]]) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.handed_over: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._originals: list[Any] = []  # kept alive, so that no id is reused
        self._memo: dict[int, Any] = {}  # of copy.deepcopy, so that two views of one storage remain so
        for original, stand_in in stand_ins.values():
            self._hand_over(original, stand_in)

    def _hand_over(self, original: Any, stand_in: Any) -> int:
        number = self._numbers[id(original)] = len(self.handed_over)
        self._originals.append(original)
        self.handed_over.append(stand_in)
        return number

    def persistent_id(self, value: Any) -> int | None:
        if type(value) in _IMMUTABLE:
            return None
        number = self._numbers.get(id(value))
        if number is not None:
            return number
        stand_in = self._stand_in(value)
        return None if stand_in is WRITTEN else self._hand_over(value, stand_in)

    def _stand_in(self, value: Any) -> Any:
        kind = type(value)
        if kind is _AsItIs:
            return value.value
        if isinstance(value, _SHARED) or _is_foreign(value) or is_importable(value):
            return value
        if isinstance(value, Tensor):
            return self._tensor(value)
        if hasattr(kind, "__deepcopy__") and not _has_reducer(value):
            return copy.deepcopy(value, self._memo)  # arrays
        return _LOCKS[kind]() if kind in _LOCKS else silent_stand_in(value)

    def _tensor(self, value: Tensor) -> Tensor:
        if value.is_inference():  # its storage can't be given to another tensor
            return value.clone()
        if value.grad_fn is not None:
            return copy.deepcopy(value.detach(), self._memo)
        return copy.deepcopy(value, self._memo)

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, types.FunctionType):
            original = vars(value).get("_torchdynamo_orig_callable")
            return _reduced(value) if original is None else (_same, (original,))
        if isinstance(value, types.MethodType):
            function: Any = value.__func__
            if getattr(type(value.__self__), value.__name__, None) is function:  # the class's, which is shared
                function = _AsItIs(function)
            return types.MethodType, (function, value.__self__)
        if isinstance(value, (WeakKeyDictionary, WeakValueDictionary)):
            return type(value), (dict(value),)
        if isinstance(value, ReferenceType):
            return ref, (value() or _Gone(),)
        is_parametrized = isinstance(value, nn.Module) and parametrize.is_parametrized(value)
        if is_parametrized or isinstance(value, MethodHold):  # these refuse to be pickled, or leave themselves out
            return _bare, (type(value),), vars(value), None, None, _set_attributes
        return NotImplemented


class _AsItIs:
    """An object that is passed beside the stream, uncopied."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Gone:
    """Stand-in for the object of a dead weak reference."""


def _is_foreign(value: Any) -> bool:
    """Whether an object is a handle of torch's own machinery."""
    kind = type(value)
    if kind.__module__.startswith("torch._dynamo"):
        return not isinstance(value, nn.Module)
    if isinstance(value, types.BuiltinFunctionType):  # torch.relu; not the method of a list
        return value.__self__ is None or isinstance(value.__self__, (type, types.ModuleType))
    return kind.__name__ in ("ProcessGroup", "DeviceMesh", "Stream") and kind.__module__.startswith("torch")


def is_importable(value: Any) -> bool:
    """Whether an object is a function that can be imported from a module or class, and so has no state."""
    if not isinstance(value, types.FunctionType):
        return False
    try:
        found = functools.reduce(getattr, value.__qualname__.split("."), sys.modules[value.__module__])
    except (AttributeError, KeyError):
        return False
    return found is value


def _has_reducer(value: Any) -> bool:
    """Whether :meth:`_Writer.reducer_override` does better than ``__deepcopy__``."""
    is_module = isinstance(value, nn.Module)
    return (
        parametrize.is_parametrized(value) if is_module else isinstance(value, (WeakKeyDictionary, WeakValueDictionary))
    )


def silent_stand_in(value: Any) -> Any:
    """Returns a stand-in that discards its input for a logger, writer or writable file, else :data:`WRITTEN`."""
    if isinstance(value, twins(Logger)):  # type: ignore[type-abstract]
        return DummyLogger()
    if hasattr(type(value), "add_scalar"):  # any TensorBoard writer
        return DummyExperiment()
    if type(value) is _CSV_WRITER:
        return csv.writer(io.StringIO())
    if isinstance(value, io.IOBase) and hasattr(value, "name") and value.writable():  # a writable file
        return io.StringIO() if isinstance(value, io.TextIOBase) else io.BytesIO()
    return WRITTEN


# Rebuilding functions and parametrized modules


def _reduced(function: types.FunctionType) -> Any:
    closure = function.__closure__ or ()
    empty = tuple(types.CellType() for _ in closure)
    bare = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, empty)
    bare.__qualname__, bare.__module__ = function.__qualname__, function.__module__
    contents = [cell.cell_contents for cell in closure if cell != types.CellType()]
    filled = [cell != types.CellType() for cell in closure]
    state = (function.__defaults__, function.__kwdefaults__, vars(function), filled, contents)
    return _same, (_AsItIs(bare),), state, None, None, _fill


def _same(value: Any) -> Any:
    return value


def _fill(function: types.FunctionType, state: Any) -> None:
    function.__defaults__, function.__kwdefaults__, attributes, filled, contents = state
    vars(function).update(attributes)
    values = iter(contents)
    for cell, is_filled in zip(function.__closure__ or (), filled, strict=True):
        if is_filled:
            cell.cell_contents = next(values)


def _bare(kind: Any) -> Any:
    return kind.__new__(kind)


def _set_attributes(value: Any, attributes: Mapping[str, Any]) -> None:
    vars(value).update(attributes)
