"""Adapts the outputs and input channels of third-party networks to the data."""

import pkgutil
from inspect import isclass
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from torch import nn

from lightning_reg.models import Supervised
from lightning_reg.settings import SettingError

__all__ = ["fitting_network"]

_OUTPUTS = ("num_classes", "num_outputs")
_CHANNELS = ("in_channels", "in_chans", "num_channels")
_TIMMS = ("num_classes", "in_chans")


def fitting_network(network: Any, model: Supervised) -> nn.Module | None:
    """Returns the network rebuilt with the number of outputs and channels that the data needs.

    Args:
        network: Configuration of the network: import path of a class or a function, and its arguments.
        model: Model built with the network as configured; it knows the data.

    Returns:
        The network; None if the configured one fits already, or its arguments have none of the usual names.

    Raises:
        SettingError: If an explicitly set value contradicts the data.
    """
    if not isinstance(network, Namespace) or "class_path" not in network:
        return None
    path, handed_on = network["class_path"], dict(network.get("dict_kwargs") or {})
    given: dict[str, Any] = {**(network.get("init_args") or {}), **handed_on}
    shape = model.input_shape or ()
    needed: dict[str, int] = dict.fromkeys(_OUTPUTS, model.num_outputs)
    if len(shape) == 3:
        needed |= dict.fromkeys(_CHANNELS, shape[0])
    if _is_timms(path):  # timm's functions pass on arguments that they don't name, including these two
        handed_on = {**{name: needed[name] for name in _TIMMS if name in needed and name not in given}, **handed_on}
    changed = {name: value for name, value in needed.items() if name in given and given[name] != value}
    if not changed and handed_on == dict(network.get("dict_kwargs") or {}):
        return None
    defaults = _defaults(path)
    for name, value in changed.items():
        if given[name] != defaults.get(name):
            raise SettingError(
                f"model.network.{name} must be {value}, as the data has it, or be left out, but is {given[name]}"
            )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "network")
    settings = {name: value for name, value in {**given, **changed}.items() if name not in handed_on}
    configured = parser.parse_object({"network": {"class_path": path, "init_args": settings, "dict_kwargs": handed_on}})
    made: nn.Module = parser.instantiate(configured).network
    return made


def _is_timms(path: str) -> bool:
    """Whether a path names one of timm's functions, which create networks."""
    return path.partition(".")[0] == "timm" and not isclass(pkgutil.resolve_name(path))


def _defaults(class_path: str) -> dict[str, Any]:
    """Returns the default arguments of a class or function, including those of functions it passes them on to."""
    made = pkgutil.resolve_name(class_path)
    parser = ArgumentParser()
    add = parser.add_class_arguments if isclass(made) else parser.add_function_arguments
    add(made, "network", fail_untyped=False)
    return dict(parser.get_defaults().get("network") or {})
