"""Settings of an object, read from the arguments of its constructor."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["described", "settings_of", "shown", "telling_settings"]

_PRINCIPAL = 2  # arguments that come first are what a technique is about


def settings_of(made: object) -> dict[str, Any]:
    """Returns the arguments of an object's constructor that it keeps under their own names, in order.

    >>> from torch import nn
    >>> settings_of(nn.Dropout(0.2))
    {'p': 0.2, 'inplace': False}
    """
    used = getattr(made, "used_settings", None)  # where the others mean nothing
    names = [name for name in _parameters(made) if used is None or name in used]
    kept = {name: getattr(made, name) for name in names if hasattr(made, name)}
    # A layer's parameter "bias" isn't its setting of that name.
    return {name: value for name, value in kept.items() if not isinstance(value, Tensor)}


def telling_settings(made: object) -> dict[str, Any]:
    """Returns the informative settings: the first two, and those that differ from the default.

    >>> from torch import nn
    >>> telling_settings(nn.LayerNorm(8, eps=1e-6))
    {'normalized_shape': (8,), 'eps': 1e-06}
    """
    telling = {}
    for index, (name, value) in enumerate(settings_of(made).items()):
        is_default = _same(value, _parameters(made)[name].default)
        is_quiet = _is_empty(value) or value == ("*",) or (is_default and (index >= _PRINCIPAL or value == 0))
        if not is_quiet:
            telling[name] = value
    return telling


def described(made: object) -> str:
    """Returns the informative settings as text.

    >>> from torch import nn
    >>> described(nn.LayerNorm(8, eps=1e-6))
    'normalized_shape (8,), eps 1e-06'
    """
    settings = telling_settings(made).items()
    return ", ".join(name if value is True else f"{name} {shown(value)}" for name, value in settings) or "defaults"


def shown(value: Any) -> str:
    """Returns a setting as text: numbers without noise, sequences by their entries, objects by name and settings.

    >>> from torch import nn
    >>> shown(0.30000000000000004), shown(("head.*", "stem.*")), shown(nn.Dropout(0.1))
    ('0.3', 'head.*, stem.*', 'Dropout(p 0.1)')
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, (bool, int, str)):
        return str(value)
    if isinstance(value, (list, tuple)):
        numbers = all(isinstance(entry, (int, float)) for entry in value)
        return str(tuple(value)) if numbers else ", ".join(shown(entry) for entry in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(entry)}" for key, entry in value.items())
    return _object_shown(value)


def _object_shown(value: Any) -> str:
    if inspect.isroutine(value) or inspect.isclass(value):
        return str(value.__name__)
    steps = getattr(value, "transforms", None)
    if isinstance(steps, Iterable) and not isinstance(steps, str):  # a chain, as torchvision's Compose
        return ", ".join(type(step).__name__ for step in steps)
    settings = described(value)
    return type(value).__name__ if settings == "defaults" else f"{type(value).__name__}({settings})"


def _parameters(made: object) -> dict[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(type(made)).parameters
    except (TypeError, ValueError):  # made in C, or by a metaclass that doesn't tell
        return {}
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind not in kinds}


def _is_empty(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, (list, tuple, dict, str)) and not value)


def _same(value: Any, default: Any) -> bool:
    try:
        return bool(value == default)
    except (RuntimeError, ValueError, TypeError):  # tensors and arrays compare entry by entry
        return False
