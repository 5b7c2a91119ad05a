"""Standing around a method of somebody else's object: a module's ``training_step``, a trainer's clipping."""

import functools
from collections.abc import Callable
from typing import Any

__all__ = ["MethodHold", "around", "inside"]

# Called with what is inside it and the arguments; returns what the method returned, or something else.
Layer = Callable[..., Any]


class MethodHold:
    """The one wrapper that stands in the place of a method, however many techniques are around it.

    Args:
        owner: Whose method is wrapped. What stood on the instance (torch.compile keeps its own training step there) is
            put back when the last layer is gone.
        name: Of the method.
    """

    def __init__(self, owner: object, name: str) -> None:
        self.owner = owner
        self.name = name
        self.layers: list[Layer] = []
        self.before = vars(owner).get(name)
        self.original: Callable[..., Any] = getattr(owner, name)
        original = self.original

        @functools.wraps(original)  # Lightning reads signatures: batch_idx may be missing
        def method(*args: Any, **kwargs: Any) -> Any:
            call: Callable[..., Any] = original
            for layer in self.layers:
                call = functools.partial(layer, call)
            return call(*args, **kwargs)

        method.hold = self  # type: ignore[attr-defined]  # found again by the next technique
        vars(owner)[name] = self.method = method

    def remove(self, layer: Layer) -> None:
        """Removes one layer.

        Args:
            layer: That was added.
        """
        self.layers.remove(layer)
        if not self.layers and vars(self.owner).get(self.name) is self.method:  # else somebody has wrapped it again
            del vars(self.owner)[self.name]
            if self.before is not None:
                vars(self.owner)[self.name] = self.before


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
        owner: Whose method.
        name: Of the method.
        layer: Called with the method inside it and the arguments.
        innermost: Whether it goes next to the method instead, where it sees the arguments that the method gets.
    """
    hold = getattr(vars(owner).get(name), "hold", None) or MethodHold(owner, name)
    hold.layers.insert(0 if innermost else len(hold.layers), layer)
    return Handle(hold, layer)


def inside(owner: object, name: str) -> Callable[..., Any]:
    """Returns a method without the layers that techniques have put around it.

    Args:
        owner: Whose method.
        name: Of the method.
    """
    hold: MethodHold | None = getattr(vars(owner).get(name), "hold", None)
    method: Callable[..., Any] = getattr(owner, name) if hold is None else hold.original
    return method
