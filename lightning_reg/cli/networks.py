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
    given: dict[str, Any] = dict(network.get("init_args") or {})
    shape = model.input_shape or ()
    needed: dict[str, int] = dict.fromkeys(_OUTPUTS, model.num_outputs)
    if len(shape) == 3:
        needed |= dict.fromkeys(_CHANNELS, shape[0])
    changed = {name: value for name, value in needed.items() if name in given and given[name] != value}
    if not changed:
        return None
    defaults = _defaults(network["class_path"])
    for name, value in changed.items():
        if given[name] != defaults.get(name):
            raise SettingError(
                f"model.network.{name} must be {value}, as the data has it, or be left out, but is {given[name]}"
            )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "network")
    configured = parser.parse_object(
        {"network": {"class_path": network["class_path"], "init_args": {**given, **changed}}}
    )
    made: nn.Module = parser.instantiate(configured).network
    return made


def _defaults(class_path: str) -> dict[str, Any]:
    """Returns the defaults of a class's or a function's arguments, those of functions it hands them on to included."""
    made = pkgutil.resolve_name(class_path)
    parser = ArgumentParser()
    add = parser.add_class_arguments if isclass(made) else parser.add_function_arguments
    add(made, "network", fail_untyped=False)
    return dict(parser.get_defaults().get("network") or {})
