"""Standing around a method of somebody else's object: a module's ``training_step``, a trainer's clipping."""

import functools
from collections.abc import Callable
from typing import Any

__all__ = ["MethodHold", "around", "inside"]

# Called with what is inside it and the arguments; returns what the method returned, or something else.
Layer = Callable[..., Any]


class MethodHold:
    """The one wrapper that stands in the place of a method, however many techniques are around it.

    A copy or a pickle of the owner has the method without it: what techniques put around it is of this run and of this
    object alone.

    Args:
        owner: Whose method is wrapped. What stood on the instance (torch.compile keeps its own training step there) is
            put back when the last layer is gone.
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
        """Calls the layers, the latest first, and inside them the method."""
        call = self.original
        for layer in self.layers:
            call = functools.partial(layer, call)
        return call(*args, **kwargs)

    def __reduce__(self) -> Any:
        """Copies and pickles as the method of the owner's copy."""
        return (getattr, (self.owner, self.name)) if self.before is None else (_same, (self.before,))

    def remove(self, layer: Layer) -> None:
        """Removes one layer; a second time does nothing."""
        if layer not in self.layers:
            return
        self.layers.remove(layer)
        if not self.layers and vars(self.owner).get(self.name) is self:  # else somebody has wrapped it again
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
    """Puts a layer around a method, the latest outermost, and returns a handle with a method ``remove``.

    Args:
        layer: Called with the method inside it and the arguments.
        innermost: Whether it goes next to the method instead, where it sees the arguments that the method gets.
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
