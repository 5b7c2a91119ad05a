"""Normalization, activation and dropout by name, or by any callable that makes the layer."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from lightning_reg.nn.layers.concrete_dropout import ConcreteDropout
from lightning_reg.nn.layers.drop_block import DropBlock1d, DropBlock2d, DropBlock3d
from lightning_reg.nn.layers.drop_connect import drop_connected
from lightning_reg.nn.layers.dropout import Dropout, GaussianDropout, SpatialDropout
from lightning_reg.nn.layers.normalization import (
    ChannelsFirstLayerNorm,
    ChannelsFirstRMSNorm,
    FilterResponseNorm,
    GhostBatchNorm,
)
from lightning_reg.settings import SettingError, check_callable, check_range, named_or_imported

__all__ = [
    "ACTIVATIONS",
    "DROPOUTS",
    "NORMS",
    "WEIGHT_DROPOUTS",
    "drop_weights_or_inputs",
    "make_activation",
    "make_dropout",
    "make_norm",
]

LayerOfWidth = Callable[[int], nn.Module]


def _group_norm(num_features: int) -> nn.Module:
    """At most 32 groups of at least 16 features, the two settings of the paper (Wu and He, 2018, arXiv:1803.08494).

    Smaller groups would do harm without positions to average over: a single number normalizes to 0.
    """
    most = min(32, max(num_features // 16, 1))
    return nn.GroupNorm(max(groups for groups in range(1, most + 1) if num_features % groups == 0), num_features)


NORMS: dict[str, dict[int, LayerOfWidth]] = {
    "none": dict.fromkeys((0, 1, 2, 3), nn.Identity),
    "batch": {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "layer": {0: nn.LayerNorm, **dict.fromkeys((1, 2, 3), ChannelsFirstLayerNorm)},
    "instance": {
        1: partial(nn.InstanceNorm1d, affine=True),
        2: partial(nn.InstanceNorm2d, affine=True),
        3: partial(nn.InstanceNorm3d, affine=True),
    },
    "group": dict.fromkeys((0, 1, 2, 3), _group_norm),
    "rms": {0: nn.RMSNorm, **dict.fromkeys((1, 2, 3), ChannelsFirstRMSNorm)},
    "ghost_batch": dict.fromkeys((0, 1, 2, 3), GhostBatchNorm),
    "filter_response": dict.fromkeys((1, 2, 3), FilterResponseNorm),
}
"""Normalization by name and by the number of dimensions after the channels (0 for features, 2 for images).

``filter_response`` includes a threshold, which replaces the activation: that may be ``"none"``.
"""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
"""Activations by name."""

DROPOUTS: dict[str, dict[int, Callable[[float], nn.Module]]] = {
    "standard": dict.fromkeys((0, 1, 2, 3), Dropout),
    "spatial": {0: Dropout, **dict.fromkeys((1, 2, 3), SpatialDropout)},
    "alpha": dict.fromkeys((0, 1, 2, 3), nn.AlphaDropout),
    "gaussian": dict.fromkeys((0, 1, 2, 3), GaussianDropout),
    "drop_block": {1: DropBlock1d, 2: DropBlock2d, 3: DropBlock3d},
}
"""Dropout by name and by the number of dimensions after the channels; ``spatial`` drops whole channels."""

WEIGHT_DROPOUTS: dict[str, Callable[[nn.Module, float], nn.Module]] = {
    "drop_connect": drop_connected,
    "concrete": ConcreteDropout,
}
"""Dropout of the weights or the inputs of a layer with weights, by name."""


def make_norm(norm: str | LayerOfWidth, num_features: int, *, spatial_dims: int = 0) -> nn.Module:
    """Makes a normalization layer.

    Args:
        norm: A key of ``NORMS``, or a callable (or its import path) from the number of features to a module.
        num_features: Number of features (channels).
        spatial_dims: Dimensions after the channels: 0 for (N, C), 1 for (N, C, L), 2 for (N, C, H, W).

    Raises:
        SettingError: If the name is unknown, or not applicable to these inputs.

    >>> make_norm("group", 48, spatial_dims=2)
    GroupNorm(3, 48, eps=1e-05, ...)
    """
    norm = named_or_imported("norm", norm, list(NORMS))
    if not isinstance(norm, str):
        return _made("norm", norm, num_features)
    if spatial_dims not in NORMS[norm]:
        raise SettingError(
            f"norm {norm!r} needs positions to average over, but the inputs are (batch, features); "
            f"allowed are {', '.join(name for name, by_dims in NORMS.items() if spatial_dims in by_dims)}"
        )
    return NORMS[norm][spatial_dims](num_features)


def make_activation(activation: str | Callable[[], nn.Module]) -> nn.Module:
    """Makes an activation.

    Args:
        activation: A key of ``ACTIVATIONS``, or a callable (or its import path) that returns a module.

    Raises:
        SettingError: If the name is unknown.

    >>> make_activation("gelu")
    GELU(approximate='none')
    """
    activation = named_or_imported("activation", activation, list(ACTIVATIONS))
    return ACTIVATIONS[activation]() if isinstance(activation, str) else _made("activation", activation)


def make_dropout(dropout: str | Callable[[float], nn.Module], p: float, *, spatial_dims: int = 0) -> nn.Module:
    """Makes a dropout layer.

    Args:
        dropout: A key of ``DROPOUTS``, or a callable (or its import path) from the probability to a module. For a key
            of ``WEIGHT_DROPOUTS`` the result is an Identity, see :func:`drop_weights_or_inputs`.
        p: Probability that something is dropped, in [0, 1], below 1 for Gaussian and concrete dropout; at 0 the result
            is an Identity, at 1 everything is dropped.
        spatial_dims: Dimensions after the channels: 0 for (N, C), 1 for (N, C, L), 2 for (N, C, H, W).

    Raises:
        SettingError: If the name is unknown or not applicable to these inputs, or ``p`` is out of range.

    >>> make_dropout("spatial", 0.2, spatial_dims=2)
    SpatialDropout(p=0.2)
    """
    check_range("drop_prob", p, low=0, high=1, high_open=dropout in ("gaussian", "concrete"))
    dropout = named_or_imported("dropout", dropout, [*DROPOUTS, *WEIGHT_DROPOUTS])
    if p == 0 or dropout in WEIGHT_DROPOUTS:
        return nn.Identity()
    if not isinstance(dropout, str):
        return _made("dropout", dropout, p)
    if spatial_dims not in DROPOUTS[dropout]:
        raise SettingError(
            f"dropout {dropout!r} needs positions to drop, but the inputs are (batch, features); "
            f"allowed are {', '.join(name for name, by_dims in DROPOUTS.items() if spatial_dims in by_dims)}"
        )
    return DROPOUTS[dropout][spatial_dims](p)


def drop_weights_or_inputs(dropout: str | Callable[[float], nn.Module], p: float, layer: nn.Module) -> nn.Module:
    """Returns a layer with dropout of its weights or inputs, or unchanged where dropout is a separate layer.

    Args:
        dropout: A key of ``WEIGHT_DROPOUTS``; anything else leaves the layer alone.
        p: Probability that something is dropped, in [0, 1]; 0 leaves the layer alone.
        layer: A linear or convolutional layer.

    Raises:
        SettingError: If a rate is to be learned starting at 0, where it would stay.

    >>> drop_weights_or_inputs("drop_connect", 0.5, nn.Linear(4, 2))
    DropConnectLinear(in_features=4, out_features=2, bias=True, p=0.5)
    """
    if dropout == "concrete" and p == 0:
        raise SettingError(
            "drop_prob must be in (0, 1) with dropout 'concrete', which learns its rate from there, but is 0"
        )
    if p == 0 or not isinstance(dropout, str) or dropout not in WEIGHT_DROPOUTS:
        return layer
    return WEIGHT_DROPOUTS[dropout](layer, p)


def _made(name: str, make: Callable[..., Any], *arguments: float) -> nn.Module:
    """Calls a user's function, and names it in the error if it doesn't make a layer."""
    check_callable(name, make, "a known name or a callable that makes a module")
    named: Any = make
    while isinstance(named, partial):  # the parser's, of a class
        named = named.args[-1] if named.args and isinstance(named.args[-1], type) else named.func
    call = f"{getattr(named, '__name__', named)}({', '.join(map(str, arguments))})"
    try:
        layer = make(*arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise SettingError(f"{name} must make a module, but {call} fails: {error}") from error
    if not isinstance(layer, nn.Module):
        raise SettingError(f"{name} must make a module, but {call} returns a {type(layer).__name__}")
    return layer
