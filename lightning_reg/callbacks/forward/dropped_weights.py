"""Layers of somebody else's module that drop their weights, or swap them, for as long as a trainer runs."""

from dataclasses import dataclass

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_reg.callbacks.forward.insertion import StochasticSession
from lightning_reg.nn.layers.drop_connect import DROP_CONNECTED, DropConnect, drop_connected, plain_again
from lightning_reg.settings import SettingError

__all__ = ["SUITED", "drop_weights", "has_plain_weights"]

SUITED = ", ".join(kind.__name__ for kind in DROP_CONNECTED)
"""Names of the layers whose weights can be dropped."""


def has_plain_weights(module: nn.Module) -> bool:
    """Whether a module is a layer whose weights can be dropped, or could if they weren't computed from others."""
    # Torch's own alone: nobody knows how a subclass uses its weights.
    return type(module) in DROP_CONNECTED or (is_parametrized(module) and isinstance(module, tuple(DROP_CONNECTED)))


def drop_weights(session: StochasticSession, p: float, what: str) -> dict[str, DropConnect]:
    """Makes the layers that a technique's settings choose drop their weights, until the run ends.

    Args:
        p: Probability that a weight is dropped.
        what: They become, for the summary.

    Returns:
        The layers, by name.

    Raises:
        SettingError: If the weights of one are computed from others.
    """
    layers: dict[str, DropConnect] = {}
    for name, module in session.technique.selected(session.run.module).items():
        if is_parametrized(module):
            raise SettingError(f"exclude must name {name}, whose weights are computed from others")
        layer = layers[name] = session.acting[name] = drop_connected(module, p)
        session.run.until_end(_Dropping(layer))
        layer.stream = session.new_stream()
        layer.lease = session.lease
        session.changes.append((f"{what}(p={p})", name))
    return layers


@dataclass(frozen=True)
class _Dropping:
    layer: DropConnect

    def remove(self) -> None:
        plain_again(self.layer)
