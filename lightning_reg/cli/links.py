"""Links between data and model: model arguments that are taken from the data module."""

import pkgutil
from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

from lightning.pytorch import LightningDataModule

from lightning_reg.data import InMemoryData
from lightning_reg.settings import SettingError

__all__ = ["FROM_DATA", "argument_from_data"]

FROM_DATA = ("num_classes", "num_targets", "input_shape", "categories")
"""Model arguments that are taken from the data module if it has an attribute of that name."""


def argument_from_data(name: str, model: Mapping[str, Any], data: LightningDataModule) -> Any:
    """Returns the value of a model argument: the data module's, unless an explicitly set one contradicts it.

    Args:
        name: One of :data:`FROM_DATA`.
        model: The model's configuration: ``class_path`` and ``init_args``.

    Raises:
        SettingError: If the data contradicts the configured value, or a required argument has no value.
    """
    given = (model.get("init_args") or {}).get(name)
    offered = getattr(data, name, None)
    default = _default(pkgutil.resolve_name(model["class_path"]), name)
    if offered is None:
        if name == "num_classes" and default is Parameter.empty and isinstance(data, InMemoryData):
            raise SettingError(
                f"model must predict numbers for this data, but is {model['class_path']}, which classifies; "
                "use a model such as MLP, or set data.task to classification where numbers are classes"
            )
        if given is None and default is Parameter.empty:
            raise SettingError(f"model.{name} must be given, because {type(data).__name__} has no {name}")
        return given
    is_by_hand = given is not None and _plain(given) != _plain(default)
    if is_by_hand and _plain(given) != _plain(offered):
        raise SettingError(
            f"model.{name} must be {_plain(offered)}, as the data has it, or be left out, but is {given}"
        )
    return offered


def _default(model: Any, name: str) -> Any:
    """Returns the default of an argument, which may be defined by a base class."""
    for base in getattr(model, "__mro__", [model]):
        parameter = signature(base).parameters.get(name)
        if parameter is not None:
            return parameter.default
    return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
