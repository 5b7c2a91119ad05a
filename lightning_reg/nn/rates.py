"""Dropout rates of layers, of torch or any library."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_reg.nn.insertion import insertions_at
from lightning_reg.nn.layers.concrete_dropout import ConcreteDropout
from lightning_reg.nn.layers.drop_connect import DropConnect
from lightning_reg.nn.layers.stochastic import StochasticLayer
from lightning_reg.nn.layers.zoneout import Zoneout

__all__ = ["Rate", "is_stochastic", "rates"]


@dataclass(frozen=True)
class Rate:
    """A dropout rate, and the attribute that holds it.

    Attributes:
        name: Qualified name of the layer.
        holder: Object that holds the rate: the layer, or one inserted at it by a hook.
        attribute: Name of the holder's attribute.
    """

    name: str
    holder: Any
    attribute: str

    @property
    def value(self) -> float:
        """Current rate."""
        return float(getattr(self.holder, self.attribute))

    def move(self, value: float) -> None:
        """Sets the rate.

        Args:
            value: New rate, in [0, 1).
        """
        setattr(self.holder, self.attribute, value)


def rates(module: nn.Module) -> Iterator[Rate]:
    """Yields every dropout rate below a module that isn't learned, including those of layers inserted by hooks.

    >>> network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2), nn.LSTM(4, 4, dropout=0.1, num_layers=2))
    >>> [(rate.name, rate.attribute, rate.value) for rate in rates(network)]
    [('1', 'p', 0.2), ('2', 'dropout', 0.1)]
    """
    for name, submodule in module.named_modules():
        if not name and _is_named_so(submodule):
            continue  # a whole network with such a name
        yield from (Rate(name, submodule, attribute) for attribute in _rate_attributes(submodule))
        for hook in insertions_at(submodule):
            yield from (Rate(name, hook.layer, attribute) for attribute in _rate_attributes(hook.layer))


def is_stochastic(module: nn.Module) -> bool:
    """Whether a module itself drops or disturbs something in training, at its current rate.

    Args:
        module: The module to check; its submodules don't count.

    >>> is_stochastic(nn.Dropout(0.1)), is_stochastic(nn.BatchNorm1d(4)), is_stochastic(nn.Linear(4, 4))
    (True, False, False)
    """
    if isinstance(module, StochasticLayer):
        return not module.is_idle
    return isinstance(module, ConcreteDropout) or any(getattr(module, name) > 0 for name in _rate_attributes(module))


_DROPPING = (StochasticLayer, DropConnect, Zoneout, nn.modules.dropout._DropoutNd)


def _rate_attributes(module: nn.Module) -> list[str]:
    names: list[str] = ["attention_drop_prob"]
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
        names.append("dropout")
    if isinstance(module, _DROPPING) or _is_named_so(module):
        names += ["p", "p_cell", "drop_prob", "rate"]
    return [name for name in names if _is_number(vars(module).get(name))]


def _is_named_so(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return "drop" in name or "stochasticdepth" in name


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
