"""Somebody else's network, told how many outputs and channels the data needs."""

import pkgutil
from collections.abc import Mapping
from inspect import isclass
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from lightning_reg.models.supervised import chosen_task
from lightning_reg.settings import SettingError

__all__ = ["filled_network", "outputs_needed"]

_OUTPUTS = ("num_classes", "num_outputs")
_CHANNELS = ("in_channels", "in_chans", "num_channels")


def outputs_needed(model: Mapping[str, Any], data: Any) -> int | None:
    """Returns how many outputs a network must have for a model's task on a data module; None where that isn't told.

    Args:
        model: The model's arguments, as they are configured.
        data: The data module.
    """
    num_classes = _first(model.get("num_classes"), getattr(data, "num_classes", None))
    num_targets = _first(model.get("num_targets"), getattr(data, "num_targets", None))
    if num_classes is None and num_targets is None:
        return None
    task: Any = model.get("task") or "auto"
    if not isinstance(task, str):
        task = pkgutil.resolve_name(task["class_path"])(**(task.get("init_args") or {}))
    elif task == "auto" and getattr(data, "task", None) in ("classification", "regression", "multilabel"):
        task = data.task
    return chosen_task(task, num_classes=num_classes).build(num_classes=num_classes, num_targets=num_targets)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def filled_network(network: Any, *, outputs: int | None, channels: int | None) -> Any:
    """Returns a network's configuration with what its arguments call the number of classes and of channels filled in.

    Args:
        network: Its class path and arguments; anything else is returned as it is.
        outputs: How many it must have; left alone where None.
        channels: Of the data's images; left alone where None.

    Raises:
        SettingError: If one of them was given and contradicts the data.
    """
    if not isinstance(network, Namespace) or "class_path" not in network:
        return network
    filled = network.clone()
    arguments = dict(filled.get("init_args") or {})
    defaults = _defaults(filled.class_path)
    wanted = dict.fromkeys(_OUTPUTS, outputs) | dict.fromkeys(_CHANNELS, channels)
    for name, value in wanted.items():
        if value is None or name not in arguments:
            continue
        if arguments[name] not in (value, defaults.get(name)):
            raise SettingError(
                f"model.network.{name} must be {value}, as the data has it, or be left out, but is {arguments[name]}"
            )
        arguments[name] = value
    filled.init_args = Namespace(arguments)  # type: ignore[no-untyped-call]
    if filled.class_path.startswith("timm."):  # its functions hand on what their signatures don't name
        named = {"num_classes": outputs, "in_chans": channels}
        known = {name: value for name, value in named.items() if value is not None and name not in arguments}
        filled.dict_kwargs = {**known, **(filled.get("dict_kwargs") or {})}
    return filled


def _defaults(class_path: str) -> dict[str, Any]:
    """Returns the defaults of a class's or a function's arguments, those of functions it hands them on to included."""
    made = pkgutil.resolve_name(class_path)
    parser = ArgumentParser()
    add = parser.add_class_arguments if isclass(made) else parser.add_function_arguments
    add(made, "network", fail_untyped=False)
    return dict(parser.get_defaults().get("network") or {})
