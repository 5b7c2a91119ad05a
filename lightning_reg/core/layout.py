"""Checks that a saved state has the layout of the one it is to replace, before anything is loaded."""

import ast
import functools
import inspect
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from lightning_reg.settings import SettingError

__all__ = ["check_declared", "check_kind", "check_layout", "check_number", "check_values"]


def check_layout(
    name: str, saved: Any, own: Any, check_single: Callable[[str, Any, float], None] | None = None
) -> None:
    """Raises if a state holds something else than the run's own; what has no value yet may become anything.

    Names that only one of the two has are left to whoever loads the state: other versions may have other names.

    Args:
        name: What the state is of, for error messages.
        saved: The saved state.
        own: The run's own.
        check_single: Checks a number, given its name, its saved value and its own; `check_number` if None.

    Raises:
        SettingError: If a part is of another kind, or a number is NaN or without a value.
    """
    check_single = check_single or check_number
    if isinstance(own, Mapping):
        check_kind(name, saved, Mapping)
        for key in own:
            if key in saved:
                check_layout(f"{name}.{key}", saved[key], own[key], check_single)
    elif isinstance(own, (list, tuple)):
        check_kind(name, saved, Sequence)
        if len(saved) == len(own):
            for index, (old, new) in enumerate(zip(saved, own, strict=True)):
                check_layout(f"{name}.{index}", old, new, check_single)
    elif isinstance(own, Tensor):
        check_kind(name, saved, Tensor)
        if own.numel() == 1 and own.dtype != torch.bool and not own.is_meta:
            check_number(name, saved, own.item())
    elif isinstance(own, (int, float)) and not isinstance(own, bool):
        check_single(name, saved, own)
    # A text that is set may be left out, but one that is only empty so far isn't None.
    elif own == "" or (isinstance(own, (bool, str)) and saved is not None):
        check_kind(name, saved, type(own))


def check_kind(name: str, saved: Any, kind: type) -> None:
    """Raises if a saved value isn't of a kind; text is no sequence."""
    if not isinstance(saved, kind) or (kind is Sequence and isinstance(saved, str)):
        raise SettingError(f"{name} is a {type(saved).__name__}, not a {kind.__name__.lower()}")


def check_number(name: str, saved: Any, own: float) -> None:
    """Raises if a saved value isn't one number, is NaN unless its own is, or is infinite where whole ones are counted.

    A tensor is a number if it has one value.
    """
    if isinstance(saved, Tensor) and saved.is_meta:
        raise SettingError(f"{name} is a tensor without values, not a number")
    value = saved.item() if isinstance(saved, Tensor) and saved.numel() == 1 else saved
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        kind = f"tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise SettingError(f"{name} is a {kind}, not a number")
    if (math.isnan(value) and not math.isnan(own)) or (math.isinf(value) and isinstance(own, int)):
        raise SettingError(f"{name} is {value}")


def check_values(name: str, saved: Any) -> None:
    """Raises if a saved tensor has a shape, but no values, as one of the meta device."""
    if isinstance(saved, Tensor) and saved.is_meta:
        raise SettingError(f"{name} is a tensor without values")
    if isinstance(saved, (Mapping, list, tuple)):
        for key, value in saved.items() if isinstance(saved, Mapping) else enumerate(saved):
            check_values(f"{name}.{key}", value)


def check_declared(name: str, saved: Mapping[str, Any], owner: type) -> None:
    """Raises if a state holds something else than a class declares for its attributes.

    What has no value yet, ``self.best_score: Tensor | None = None``, shows only there what it may become.

    Args:
        name: What the state is of, for error messages.
        saved: The saved state, by the names of attributes, perhaps without a leading underscore.
        owner: The class.

    Raises:
        SettingError: If a part is of another kind. A tensor must have one value: states of callbacks are scores.
    """
    hints = _declared(owner)
    for key, value in saved.items():
        hint = hints.get(key, hints.get(f"_{key}"))
        if hint is not None:
            _check_hint(f"{name}.{key}", value, hint)


def _check_hint(name: str, saved: Any, hint: Any) -> None:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if saved is None and NoneType in kinds:
        return
    kind = next(kind for kind in kinds if kind is not NoneType)
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is Tensor:
        check_number(name, saved, math.inf)
    elif origin is dict:
        check_kind(name, saved, Mapping)
        for key, value in saved.items() if inner else ():
            if isinstance(inner[0], type) and not isinstance(key, inner[0]):
                raise SettingError(f"{name} has the key {key!r}, which is no {inner[0].__name__}")
            _check_hint(f"{name}.{key}", value, inner[1])
    elif origin is list:
        check_layout(name, saved, [])
    elif origin in (int, float, str):
        check_layout(name, saved, origin())


@functools.cache
def _declared(owner: type) -> Mapping[str, Any]:
    """Returns the types that constructors declare for attributes; Python keeps them in the source alone."""
    found: dict[str, Any] = {}
    for base in reversed(owner.__mro__):
        make = vars(base).get("__init__")
        try:
            lines = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(make))))  # type: ignore[arg-type]
        except (OSError, TypeError, SyntaxError):  # without source, as object's own
            continue
        for line in lines:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Attribute):
                alone = SimpleNamespace(__annotations__={line.target.attr: ast.unparse(line.annotation)})
                try:
                    found |= get_type_hints(alone, globalns=make.__globals__)  # type: ignore[union-attr]
                except NameError:  # what only type checkers import
                    continue
    return found
