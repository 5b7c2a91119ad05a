"""Expectations of a module's code about a part: its class, and attributes that another class may lack."""

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
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
            for asked, kind, answer in _questions(node):
                may_be_it = isinstance(asked, ast.Name) or _is_child(asked, leaf)
                kinds = _named_by(kind, function)
                if may_be_it and _tells_apart(answer, kinds, old, new):
                    return f"{function.__qualname__} asks whether it is a {ast.unparse(kind)}"
            if isinstance(node, ast.Attribute) and _is_child(node.value, leaf):
                is_missed = hasattr(old, node.attr) and not hasattr(new, node.attr)
                if is_missed and isinstance(node.ctx, ast.Load):  # what it sets, it may set on any
                    return f"{function.__qualname__} reads its {node.attr}"
    return None


_Answer = Callable[[nn.Module, tuple[type | str, ...]], bool]


def _questions(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr, _Answer]]:
    """Yields what a node asks the class of, which classes or names it compares that with, and the comparison."""
    match node:
        case ast.Call(func=ast.Name(id="isinstance"), args=[asked, kind]):
            yield asked, kind, _is_instance
        case ast.Call(func=ast.Name(id="issubclass"), args=[of, kind]):
            yield from ((asked, kind, _is_instance) for asked in _asked_by(of))
        case ast.Compare(left=left, comparators=[right]):
            for one, other in ((left, right), (right, left)):
                yield from ((asked, other, _is_of_class) for asked in _asked_by(one))
                if isinstance(one, ast.Attribute) and one.attr in ("__name__", "__qualname__"):
                    yield from ((asked, other, _is_of_name) for asked in _asked_by(one.value))
        case ast.Match(subject=asked, cases=cases):
            patterns = [pattern for case in cases for pattern in ast.walk(case.pattern)]
            yield from (
                (asked, pattern.cls, _is_instance) for pattern in patterns if isinstance(pattern, ast.MatchClass)
            )


def _asked_by(of: ast.expr) -> list[ast.expr]:
    """Returns x of ``type(x)`` and ``x.__class__``."""
    match of:
        case ast.Call(func=ast.Name(id="type"), args=[asked]) | ast.Attribute(value=asked, attr="__class__"):
            return [asked]
    return []


def _is_instance(part: nn.Module, kinds: tuple[type | str, ...]) -> bool:
    return isinstance(part, tuple(kind for kind in kinds if isinstance(kind, type)))


def _is_of_class(part: nn.Module, kinds: tuple[type | str, ...]) -> bool:
    return type(part) in kinds


def _is_of_name(part: nn.Module, kinds: tuple[type | str, ...]) -> bool:
    return any(isinstance(kind, str) and kind in type(part).__name__ for kind in kinds)


def _called(holder: nn.Module) -> Iterator[FunctionType]:
    """Yields a module's forward and the methods and properties that it calls, and those that they call."""
    waiting, seen = ["forward"], set()
    while waiting:
        name = waiting.pop()
        found = getattr(type(holder), name, None)
        function = inspect.unwrap((found.fget if isinstance(found, property) else found) or len)
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


def _named_by(node: ast.expr, function: FunctionType) -> tuple[type | str, ...]:
    """Returns the classes and texts that an expression names in a function's module, as far as they are known."""
    match node:
        case ast.Tuple(elts=entries) | ast.List(elts=entries) | ast.Set(elts=entries):
            return tuple(value for entry in entries for value in _named_by(entry, function))
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _named_by(left, function) + _named_by(right, function)
        case ast.Constant(value=str(text)):
            return (text,)
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    value: Any = function.__globals__.get(node.id) if isinstance(node, ast.Name) else None
    for name in names:
        value = getattr(value, name, None)
    values = value if isinstance(value, tuple) else (value,)
    return tuple(value for value in values if isinstance(value, (type, str)))


def _tells_apart(answer: _Answer, kinds: tuple[type | str, ...], old: nn.Module, new: nn.Module) -> bool:
    try:
        return answer(old, kinds) != answer(new, kinds)
    except TypeError:  # no class to ask for
        return False
