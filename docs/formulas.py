"""The formulas of a technique: of the functions that it uses directly, or through a layer, transform or helper."""

import inspect
import re
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

from lightning_reg.core.technique import Technique

__all__ = ["section"]

_FUNCTIONAL = "lightning_reg.functional."
# Packages outside the technique's own whose code counts as a part of it.
_ROOMS = ("lightning_reg.nn.layers.", "lightning_reg.transforms.")


def section(technique: type[Technique]) -> list[str]:
    """Returns the section of formulas for a technique's page as Markdown; empty if it has no formula.

    Args:
        technique: Class of the technique.
    """
    lines = []
    for function in sorted(_functions(technique), key=_place):
        formula = re.search(r"^\.\. math::.*(?:\n+ +.*)*", inspect.getdoc(function) or "", re.MULTILINE)
        if formula:
            path = f"{function.__module__}.{function.__name__}"
            lines += [f":func:`{function.__name__}() <{path}>`", "", formula[0], ""]
    text = "\n".join(lines).strip()
    return [f"## Formulas\n\n```{{eval-rst}}\n{text}\n```"] if lines else []


def _place(function: FunctionType) -> tuple[str, int]:
    return function.__module__, inspect.unwrap(function).__code__.co_firstlineno


def _functions(technique: type[Technique]) -> set[FunctionType]:
    module = sys.modules[technique.__module__]
    found = set(_imported(module))
    for thing in _things(module):
        home = sys.modules[thing.__module__]
        if thing.__module__.startswith(f"{module.__package__}."):  # a helper, which only this technique uses
            found |= set(_imported(home))
        elif thing.__module__.startswith(_ROOMS):
            bases = inspect.getmro(thing) if inspect.isclass(thing) else (thing,)
            used = "".join(inspect.getsource(base) for base in bases if base.__module__.startswith(_ROOMS))
            found |= {function for function in _imported(home) if re.search(rf"\b{function.__name__}\b", used)}
    return found


def _things(module: ModuleType) -> Iterator[Any]:
    """Yields the classes and functions of a module's namespace, and those it uses from modules that it imports."""
    text = inspect.getsource(module)
    for thing in vars(module).values():
        if inspect.ismodule(thing):
            yield from (
                inner
                for name, inner in vars(thing).items()
                if (inspect.isclass(inner) or inspect.isfunction(inner)) and re.search(rf"\.{name}\b", text)
            )
        elif inspect.isclass(thing) or inspect.isfunction(thing):
            yield thing


def _imported(module: ModuleType) -> list[FunctionType]:
    functions = (thing for thing in vars(module).values() if inspect.isfunction(thing))
    return [function for function in functions if function.__module__.startswith(_FUNCTIONAL)]
