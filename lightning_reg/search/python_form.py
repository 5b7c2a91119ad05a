"""A cocktail as Python code for a user's Trainer."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_reg import callbacks
from lightning_reg.search.overlay import class_of

__all__ = ["python_form"]


def python_form(added: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """Returns code that creates a cocktail's callbacks, with its other settings as comments.

    Args:
        added: Callbacks of the cocktail, as in a configuration.
        settings: Other settings of the cocktail, by their command-line names.

    >>> print(python_form([{"class_path": "lightning_reg.callbacks.L1Penalty", "init_args": {"weight": 0.001}}], {}))
    from lightning_reg.callbacks import L1Penalty
    <BLANKLINE>
    callbacks = [
        L1Penalty(weight=0.001),
    ]
    <BLANKLINE>
    """
    imports: dict[str, set[str]] = {}
    made = [_made(entry, imports) for entry in added]
    lines = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(imports.items())]
    lines += [""] if lines else []
    lines += ["callbacks = [", *(f"    {item}," for item in made), "]"] if made else ["callbacks = []"]
    if settings:
        lines += ["", "# Beside them, in your module and your data:"]
        lines += [f"# {name} = {_made(value, {})}" for name, value in settings.items()]
    return "\n".join(lines) + "\n"


def _made(value: Any, imports: dict[str, set[str]]) -> str:
    if isinstance(value, Mapping) and "class_path" in value:
        kind = class_of(value)
        path = str(value["class_path"])
        module, _, name = path.rpartition(".")
        if kind is not None:
            name = kind.__name__
            module = callbacks.__name__ if name in callbacks.__all__ else kind.__module__
        if module:
            imports.setdefault(module, set()).add(name)
        defaults = {} if kind is None else inspect.signature(kind).parameters
        arguments = [
            f"{key}={_made(argument, imports)}"
            for key, argument in (value.get("init_args") or {}).items()
            if not (key in defaults and defaults[key].default == argument)
        ]
        return f"{name}({', '.join(arguments)})"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else f"float('{value}')"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_made(item, imports) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_made(item, imports)}" for key, item in value.items()) + "}"
    return repr(value)
