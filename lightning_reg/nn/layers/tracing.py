"""Tracing a layer as a leaf module in torch.fx."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import nn
from torch.fx import Proxy

__all__ = ["traced_whole"]

F = TypeVar("F", bound=Callable[..., Any])


def traced_whole(forward: F) -> F:
    """Makes a layer a leaf in graphs of ``torch.fx``, as torch's own layers are.

    What a layer draws depends on shapes and on its mode, which a tracer can't see, so its decision would be recorded
    once rather than made in each call. The tracer recognizes leaves by their Python module; this decorator marks ours.

    Args:
        forward: Method of a module whose first argument is a tensor.

    >>> import torch
    >>> class Halves(nn.Module):
    ...     @traced_whole
    ...     def forward(self, inputs):
    ...         return inputs / 2 if len(inputs) > 1 else inputs
    >>> [node.op for node in torch.fx.symbolic_trace(nn.Sequential(Halves())).graph.nodes]
    ['placeholder', 'call_module', 'output']
    """

    @functools.wraps(forward)
    def traced(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(first, Proxy):
            tracer = first.tracer
            path = tracer.path_of_module(self)  # type: ignore[attr-defined]  # every tracer of modules has it
            return tracer.create_proxy("call_module", path, args, kwargs)
        return forward(self, *args, **kwargs)

    return cast("F", traced)
