"""Expectations of a module's code about a part: its class, and attributes that another class may lack."""

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from torch import nn

__all__ = ["unmet_expectation"]


def unmet_expectation(holder: nn.Module, leaf: str, old: nn.Module, new: nn.Module) -> str | None:
    """Returns, in words, an expectation about a part that its replacement doesn't meet; None if there is none.

    Reads the source of ``forward`` and of the methods that it calls; where there is no source, nothing is found. What a
    local variable is asked for is taken to be asked of every part, because it may be that of a loop over them.

    Args:
        holder: Module that holds the part.
        leaf: Name of the part in its holder; empty where it is a part of a part.
        old: The part.
        new: Replacement of the part.

    >>> network = nn.Sequential(nn.BatchNorm2d(4))
    >>> unmet_expectation(network, "0", network[0], nn.GroupNorm(2, 4)) is None
    True
    """
    for function in _called(holder):
        for node in ast.walk(_parsed(function)):
            if isinstance(node, ast.Call) and _is_name(node.func, "isinstance") and len(node.args) == 2:
                asked, kind = node.args
                may_be_it = isinstance(asked, ast.Name) or _is_child(asked, leaf)
                if may_be_it and _tells_apart(_value(kind, function), old, new):
                    return f"{function.__qualname__} asks whether it is a {ast.unparse(kind)}"
            attribute = node.attr if isinstance(node, ast.Attribute) and _is_child(node.value, leaf) else ""
            if attribute and hasattr(old, attribute) and not hasattr(new, attribute):
                return f"{function.__qualname__} reads its {attribute}"
    return None


def _called(holder: nn.Module) -> Iterator[FunctionType]:
    """Yields a module's forward and the methods that it calls, and those that they call."""
    waiting, seen = ["forward"], set()
    while waiting:
        name = waiting.pop()
        function = inspect.unwrap(getattr(type(holder), name, None) or len)
        if name in seen or not isinstance(function, FunctionType) or function.__module__.startswith("torch."):
            continue
        seen.add(name)
        yield function
        nodes = ast.walk(_parsed(function))
        waiting += [node.attr for node in nodes if isinstance(node, ast.Attribute) and _is_name(node.value, "self")]


@functools.lru_cache(maxsize=256)  # every module above a part is asked about it
def _parsed(function: FunctionType) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return ast.Module(body=[], type_ignores=[])


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_child(node: ast.AST, leaf: str) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == leaf and _is_name(node.value, "self")


def _value(node: ast.expr, function: FunctionType) -> Any:
    """Returns the classes that an expression names in a function's module; an empty tuple where they aren't known."""
    if isinstance(node, ast.Tuple):
        found = [_value(entry, function) for entry in node.elts]
        return tuple(kind for kind in found if isinstance(kind, type))
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ()
    value: Any = function.__globals__.get(node.id, ())
    for name in names:
        value = getattr(value, name, ())
    return value


def _tells_apart(kind: Any, old: nn.Module, new: nn.Module) -> bool:
    try:
        return isinstance(old, kind) != isinstance(new, kind)
    except TypeError:
        return False
