"""Wrapping a method of another object: a module's ``training_step``, a trainer's clipping."""

import functools
from collections.abc import Callable
from types import CodeType
from typing import Any, Protocol

__all__ = ["MethodHold", "Removable", "around", "inside"]

# Called with the next inner callable and the arguments; returns its result, or a replacement.
Layer = Callable[..., Any]


class Removable(Protocol):
    """A handle that removes a hook, as torch's do."""

    def remove(self) -> None:
        """Removes the hook."""


class MethodHold:
    """The single wrapper that replaces a method, however many techniques wrap it.

    Copies and pickles of the owner have the unwrapped method: the layers belong to this run and this object alone.

    Args:
        owner: Object whose method is wrapped. An instance attribute of that name (torch.compile keeps its own training
            step there) is restored when the last layer is removed.
    """

    def __init__(self, owner: object, name: str) -> None:
        self.original: Callable[..., Any] = getattr(owner, name)
        functools.update_wrapper(self, self.original)  # Lightning reads signatures: batch_idx may be missing
        self.owner = owner
        self.name = name
        self.layers: list[Layer] = []
        self.before = vars(owner).get(name)
        vars(owner)[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the method within its layers, the latest outermost."""
        call = self.original
        for layer in self.layers:
            call = functools.partial(layer, call)
        return call(*args, **kwargs)

    @property
    def __code__(self) -> CodeType:
        """Code of the method, of which torch.export takes note, or of this wrapper where the method has none."""
        code: CodeType = getattr(self.original, "__code__", MethodHold.__call__.__code__)
        return code

    def __reduce__(self) -> Any:
        """Copies and pickles as the method of the owner's copy."""
        return (getattr, (self.owner, self.name)) if self.before is None else (_same, (self.before,))

    def remove(self, layer: Layer) -> None:
        """Removes one layer; a second time does nothing."""
        if layer not in self.layers:
            return
        self.layers.remove(layer)
        if not self.layers and vars(self.owner).get(self.name) is self:  # otherwise it was wrapped again
            del vars(self.owner)[self.name]
            if self.before is not None:
                vars(self.owner)[self.name] = self.before


def _same(value: Any) -> Any:
    return value


class Handle:
    """A handle like those of torch's hooks."""

    def __init__(self, hold: MethodHold, layer: Layer) -> None:
        self._hold = hold
        self._layer = layer

    def remove(self) -> None:
        self._hold.remove(self._layer)


def around(owner: object, name: str, layer: Layer, *, innermost: bool = False) -> Handle:
    """Wraps a method in a layer, outside the existing ones, and returns a handle with a method ``remove``.

    Args:
        layer: Function called with the next inner callable and the arguments.
        innermost: Whether to put the layer directly around the method, where it sees the arguments of the method.
    """
    there = vars(owner).get(name)
    hold = there if isinstance(there, MethodHold) else MethodHold(owner, name)
    hold.layers.insert(0 if innermost else len(hold.layers), layer)
    return Handle(hold, layer)


def inside(owner: object, name: str) -> Callable[..., Any]:
    """Returns a method without the layers that techniques have put around it."""
    there = vars(owner).get(name)
    method: Callable[..., Any] = there.original if isinstance(there, MethodHold) else getattr(owner, name)
    return method
