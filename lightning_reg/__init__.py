"""Every regularization technique as PyTorch Lightning callbacks, layers, models and data modules.

Everything public can be imported from here: ``from lightning_reg import L2Penalty, Mixup``. The package that exports a
name is imported on first access, so ``import lightning_reg`` alone costs nothing.

>>> import lightning_reg
>>> lightning_reg.L2Penalty(weight=1e-4).weight
0.0001
"""

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what __getattr__ finds, for type checkers and editors
    from lightning_reg.callbacks import *  # noqa: F403
    from lightning_reg.data import *  # noqa: F403
    from lightning_reg.init import *  # noqa: F403
    from lightning_reg.models import *  # noqa: F403
    from lightning_reg.monitors.inspection import *  # noqa: F403
    from lightning_reg.nn import *  # noqa: F403
    from lightning_reg.optim import *  # noqa: F403
    from lightning_reg.transforms import *  # noqa: F403

__version__ = "0.2.0"


@cache
def _exports() -> dict[str, str]:
    """Returns the module that exports each public name, parsed from the sources: importing them would import torch."""
    exports: dict[str, str] = {}
    for statement in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8"))):
        if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
            module = str(statement.module)
            exports |= dict.fromkeys(_all_of(module), module)
    return exports


def _all_of(module: str) -> list[str]:
    place = Path(__file__).parent.joinpath(*module.split(".")[1:])
    source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    return []


def _exported(name: str) -> Any:
    if name == "__all__":
        return sorted(_exports())
    if name not in _exports():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_exports()[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_exports()})


if not TYPE_CHECKING:  # with a __getattr__, type checkers would accept any name
    __getattr__ = _exported
