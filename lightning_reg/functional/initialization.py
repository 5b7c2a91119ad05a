r"""Initial weights, by name and by the activation that follows.

What decides is whether the variance of activations and gradients stays the same from layer to layer. With n inputs
of variance s² and weights of variance v, a linear unit has variance n·v·s²: so v = gain²/n, where the gain makes up
for what the activation takes away.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import init

from lightning_reg.settings import named_or_imported

__all__ = ["INITIALIZATIONS", "Initializer", "initialize_", "scheme_for_activation"]

Initializer = Callable[[Tensor], object]
"""Fills a weight tensor in place, as the functions of torch.nn.init do."""


def _lecun_normal_(weight: Tensor) -> Tensor:
    fan_in = init._calculate_fan_in_and_fan_out(weight)[0]
    return init.normal_(weight, std=math.sqrt(1.0 / fan_in))


INITIALIZATIONS: dict[str, Initializer] = {
    "zeros": init.zeros_,
    "uniform": partial(init.uniform_, a=-0.05, b=0.05),
    "normal": partial(init.normal_, std=0.05),
    "truncated_normal": partial(init.trunc_normal_, std=0.02, a=-0.04, b=0.04),
    "small_normal": partial(init.normal_, std=0.02),
    "xavier_normal": init.xavier_normal_,
    "xavier_uniform": init.xavier_uniform_,
    "kaiming_normal": partial(init.kaiming_normal_, nonlinearity="relu"),
    "kaiming_uniform": partial(init.kaiming_uniform_, nonlinearity="relu"),
    "kaiming_normal_fan_out": partial(init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
    "lecun_normal": _lecun_normal_,
    "orthogonal": init.orthogonal_,
}
"""Every named scheme, as a function that fills one weight tensor in place."""


def scheme_for_activation(activation: nn.Module) -> Initializer:
    """Returns the scheme that keeps the variance through this activation.

    Args:
        activation: The module that follows the weights.

    Returns:
        Kaiming normal (fan_in) for ReLU, its smooth relatives (GELU, SiLU, ...) and leaky ReLU with its slope; LeCun
        normal for SELU; Xavier normal for sigmoid, tanh, no activation and whatever isn't known.

    Reference:
        Xavier Glorot, Yoshua Bengio: Understanding the difficulty of training deep feedforward neural networks,
        AISTATS 2010. Kaiming He et al.: Delving Deep into Rectifiers, ICCV 2015, arXiv:1502.01852. Günter Klambauer
        et al.: Self-Normalizing Neural Networks, NeurIPS 2017, arXiv:1706.02515.

    >>> scheme_for_activation(nn.LeakyReLU(0.2)).keywords
    {'a': 0.2, 'nonlinearity': 'leaky_relu'}
    """
    if isinstance(activation, nn.LeakyReLU):
        return partial(init.kaiming_normal_, a=activation.negative_slope, nonlinearity="leaky_relu")
    if isinstance(activation, nn.SELU):
        return _lecun_normal_
    if isinstance(activation, (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.Hardswish, nn.Softplus)):
        return INITIALIZATIONS["kaiming_normal"]
    return INITIALIZATIONS["xavier_normal"]


@torch.no_grad()
def initialize_(module: nn.Module, scheme: str | Initializer, activation: nn.Module) -> None:
    """Initializes every linear and convolutional layer below ``module``, in place.

    Weights follow the scheme and biases become 0. Normalization layers keep what their constructors gave them
    (γ = 1, β = 0), and so does everything else, transposed convolutions included.

    Args:
        module: What is searched.
        scheme: ``"auto"`` (by the activation), ``"default"`` (what torch does; nothing is touched), a key of
            ``INITIALIZATIONS``, or a function (or its import path) that fills a weight tensor in place.
        activation: The activation between the layers; only ``"auto"`` asks for it.

    Raises:
        SettingError: If the scheme's name isn't known.

    >>> layer = nn.Linear(256, 128)
    >>> initialize_(layer, "zeros", nn.ReLU())
    >>> int(layer.weight.count_nonzero())
    0
    """
    if scheme == "default":
        return
    scheme = named_or_imported("init", scheme, ["auto", "default", *INITIALIZATIONS])
    if scheme == "auto":
        fill = scheme_for_activation(activation)
    else:
        fill = INITIALIZATIONS[scheme] if isinstance(scheme, str) else scheme
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            fill(layer.weight)
            if layer.bias is not None:
                layer.bias.zero_()
