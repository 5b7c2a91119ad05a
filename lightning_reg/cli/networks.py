"""Outputs and channels of somebody else's network, as the data needs them."""

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
    """Returns a network with as many outputs and channels as the data needs, where its arguments name them.

    Args:
        network: Its configuration: the path of a class or a function, and arguments.
        model: That was made with the network as it is configured, and knows the data.

    Returns:
        The network; None where the configured one is right, or it isn't said so by one of the usual names.

    Raises:
        SettingError: If a value was given that contradicts the data.
    """
    if not isinstance(network, Namespace) or "class_path" not in network:
        return None
    path, handed_on = network["class_path"], dict(network.get("dict_kwargs") or {})
    given: dict[str, Any] = {**(network.get("init_args") or {}), **handed_on}
    shape = model.input_shape or ()
    needed: dict[str, int] = dict.fromkeys(_OUTPUTS, model.num_outputs)
    if len(shape) == 3:
        needed |= dict.fromkeys(_CHANNELS, shape[0])
    if _is_timms(path):  # whose functions hand on what they don't name, all of them these two
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
    """Whether it is one of timm's functions, which make networks."""
    return path.partition(".")[0] == "timm" and not isclass(pkgutil.resolve_name(path))


def _defaults(class_path: str) -> dict[str, Any]:
    """Returns the defaults of a class's or a function's arguments, those of functions it hands them on to included."""
    made = pkgutil.resolve_name(class_path)
    parser = ArgumentParser()
    add = parser.add_class_arguments if isclass(made) else parser.add_function_arguments
    add(made, "network", fail_untyped=False)
    return dict(parser.get_defaults().get("network") or {})
