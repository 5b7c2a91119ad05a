"""Layers of an existing module that drop or swap their weights for the length of a run."""

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
    """Whether a module is a layer whose weights can be dropped, or could if they weren't parametrized."""
    # Torch's own classes alone: a subclass may use its weights in any way.
    return type(module) in DROP_CONNECTED or (is_parametrized(module) and isinstance(module, tuple(DROP_CONNECTED)))


def drop_weights(session: StochasticSession, p: float, what: str) -> dict[str, DropConnect]:
    """Makes the layers that a technique selects drop their weights, until the run ends.

    Args:
        p: Probability that a weight is dropped.
        what: Name of the technique in the summary.

    Returns:
        The layers, by name.

    Raises:
        SettingError: If a layer's weights are parametrized.
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
