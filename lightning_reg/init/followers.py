"""Activations that follow layers, as far as a network's structure shows them."""

import re
from collections.abc import Iterator
from typing import TypeGuard

from torch import nn

from lightning_reg.init.fans import WEIGHT_LAYERS

__all__ = ["NORMS", "following_activations"]

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""torch's normalization layers."""

_ACTIVATIONS = tuple(
    getattr(nn.modules.activation, name) for name in nn.modules.activation.__all__ if name != "MultiheadAttention"
)


def following_activations(module: nn.Module) -> dict[nn.Module, nn.Module | None]:
    """Returns the activation that follows each linear or convolutional layer in an ``nn.Sequential``.

    Normalization, dropout, pooling and reshaping in between are skipped. Nested Sequentials are read as one.

    Returns:
        Activation by layer; an Identity where there is none, because another layer with weights or the end of
        ``module`` comes next; None where an unknown module comes next. Layers outside of a Sequential, whose order is
        only known to code, are left out.

    >>> network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))
    >>> [type(activation).__name__ for activation in following_activations(network).values()]
    ['Identity', 'Tanh']
    """
    found: dict[nn.Module, nn.Module | None] = {}
    for chain in filter(_is_chain, module.modules()):
        # Nothing follows the last layer of ``module``; only the surrounding code knows what follows an inner chain.
        behind: nn.Module | None = nn.Identity() if chain is module else None
        for layer in reversed(list(_links(chain))):
            if isinstance(layer, _ACTIVATIONS):
                behind = layer
            elif isinstance(layer, WEIGHT_LAYERS):
                found.setdefault(layer, behind)  # outer chains come first, and see more
                behind = nn.Identity()
            elif not _is_passed_by(layer):
                behind = None
    return found


def _is_chain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _links(chain: nn.Sequential) -> Iterator[nn.Module]:
    for link in chain:
        inside = next(link.children(), None)
        if _is_chain(link):
            yield from _links(link)
        elif isinstance(inside, WEIGHT_LAYERS) and "drop" in type(link).__name__.lower():
            yield inside  # a layer whose inputs are dropped
        else:
            yield link


def _is_passed_by(layer: nn.Module) -> bool:
    """Whether a layer that isn't an activation only normalizes, drops, pools or reshapes."""
    if isinstance(layer, NORMS):
        return True
    is_mixing = any(layer.children()) or any(parameter.ndim > 1 for parameter in layer.parameters())
    return not is_mixing and any(
        kind is not nn.Module
        and (kind.__module__.startswith("torch.nn.modules.") or re.search("norm|drop", kind.__name__.lower()))
        for kind in type(layer).__mro__
    )
