"""Checks that a checkpoint matches a model, with shorter messages than torch's."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lightning_reg.settings import SettingError

__all__ = ["check_fits", "check_same_structure"]


def check_same_structure(saved: Mapping[str, Any], present: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises if a checkpoint's network computes something else than the model, although the weights' shapes may match.

    Args:
        names: Names of the hyperparameters that decide what the network computes.

    Raises:
        SettingError: If a hyperparameter differs; names the first one.

    >>> check_same_structure({"activation": "tanh"}, {"activation": "relu"}, ["activation"])
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: model.activation must be 'tanh', as in the checkpoint, but is 'relu'
    """
    for name in names:
        if name in saved and name in present and _as_list(saved[name]) != _as_list(present[name]):
            raise SettingError(f"model.{name} must be {saved[name]!r}, as in the checkpoint, but is {present[name]!r}")


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def check_fits(state: Mapping[str, Any], module: nn.Module) -> None:
    """Raises if a checkpoint's weights can't be loaded into a module.

    Args:
        state: The checkpoint's ``state_dict``.
        module: The module to load it into.

    Raises:
        SettingError: If entries differ; names the first one, and how many there are.

    >>> check_fits({"weight": nn.Linear(2, 3).weight}, nn.Linear(2, 4, bias=False))
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: the checkpoint doesn't fit the model: 'weight' is (3, 2) in the checkpoint ...
    """
    shapes = {name: tuple(value.shape) for name, value in state.items() if hasattr(value, "shape")}
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    differences = [
        f"{name!r} is {shapes.get(name, 'absent')} in the checkpoint and {wanted.get(name, 'absent')} in the model"
        for name in {**wanted, **shapes}
        if shapes.get(name) != wanted.get(name)
    ]
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise SettingError(
            f"the checkpoint doesn't fit the model: {differences[0]}{more}; "
            "build the model with the settings it was trained with (config.yaml in the run's folder has them)"
        )
