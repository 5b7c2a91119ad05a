"""A convolutional network with pluggable normalization, activation, dropout and initialization."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_reg.models.supervised import Supervised
from lightning_reg.nn import convolutional_network

__all__ = ["CNN"]


class CNN(Supervised):
    """A convolutional network that classifies images.

    Stages of 3×3 convolutions (each: weights, normalization, activation), with dropout at the end of each stage and
    2×2 max pooling between them; then the average over all positions, dropout and a linear layer.

    Args:
        input_shape: (channels, height, width) of one image; taken from the data module on the command line.
        channels: Channels of each stage, in order.
        layers_per_stage: Convolutions in each stage.
        norm: Normalization: none, batch, ghost_batch, layer, instance, group, rms, filter_response, or any
            callable from the number of channels to a module.
        activation: none, relu, leaky_relu, elu, selu, gelu, silu, mish, tanh, sigmoid, or any callable that returns a
            module.
        dropout: Kind of dropout between stages: standard, spatial (whole channels), drop_block (squares of 7×7), alpha,
            gaussian; drop_connect (weights), concrete (learns its rate for channels, starting at ``drop_prob``); or any
            callable from the probability to a module.
        drop_prob: Probability of that dropout, in [0, 1].
        head_drop_prob: Probability that a feature is dropped before the last layer, in [0, 1].
        init: Initialization: auto (by the activation), default (torch's), zeros, uniform, normal, truncated_normal,
            small_normal, xavier_normal, xavier_uniform, kaiming_normal, kaiming_uniform, kaiming_normal_fan_out,
            kaiming_uniform_fan_out, lecun_normal, orthogonal, lsuv (orthogonal, scaled by the first training batch), or
            a function that fills a weight tensor in place.
        settings: Arguments of :class:`Supervised` other than ``network``.

    Raises:
        SettingError: If a name is unknown, a number is out of range, or the images are too small.

    >>> import torch
    >>> module = CNN(input_shape=(3, 32, 32), num_classes=10, channels=[8, 16])
    >>> module(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    structure = ("activation", "norm", "channels", "layers_per_stage")

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
        channels: Sequence[int] = (32, 64, 128),
        layers_per_stage: int = 2,
        norm: str | Callable[[int], nn.Module] = "batch",
        activation: str | Callable[[], nn.Module] = "relu",
        dropout: str | Callable[[float], nn.Module] = "spatial",
        drop_prob: float = 0.0,
        head_drop_prob: float = 0.0,
        init: str | Callable[[Tensor], Any] = "auto",
        **settings: Any,
    ) -> None:
        network: Any = partial(
            convolutional_network,
            input_shape,
            channels=channels,
            layers_per_stage=layers_per_stage,
            norm=norm,
            activation=activation,
            dropout=dropout,
            drop_prob=drop_prob,
            head_drop_prob=head_drop_prob,
            init=init,
        )
        super().__init__(network, input_shape=input_shape, **settings)
