"""A multilayer perceptron with pluggable normalization, activation, dropout and initialization."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_reg.models.supervised import Supervised
from lightning_reg.nn import dense_network

__all__ = ["MLP"]


class MLP(Supervised):
    """A multilayer perceptron that classifies; images are flattened, categories of a table embedded.

    Each hidden layer is: weights, normalization, activation, dropout.

    Args:
        input_shape: Shape of one sample; taken from the data module on the command line.
        hidden_sizes: Widths of the hidden layers, in order.
        norm: Normalization: none, batch, ghost_batch, layer, group, rms, or any callable from the number of
            features to a module.
        activation: none, relu, leaky_relu, elu, selu, gelu, silu, mish, tanh, sigmoid, or any callable that returns a
            module.
        dropout: Kind of dropout: standard, alpha, gaussian; drop_connect (weights), concrete (learns its rate from
            ``drop_prob`` on); or any callable from the probability to a module.
        drop_prob: Probability that an activation is dropped, in [0, 1].
        init: Initialization: auto (by the activation), default (torch's), zeros, uniform, normal, truncated_normal,
            small_normal, xavier_normal, xavier_uniform, kaiming_normal, kaiming_uniform, kaiming_normal_fan_out,
            kaiming_uniform_fan_out, lecun_normal, orthogonal, lsuv (orthogonal, scaled by the first training batch), or
            a function that fills a weight tensor in place.
        categories: How many categories each of the last columns of a table has, code 0 included, where they are to be
            embedded; taken from the data module on the command line.
        embed_dim: Width of the vector that a category becomes, at least 1.
        settings: What every model has: those of :class:`Supervised`, but its ``network``.

    Raises:
        SettingError: If a name isn't known or a number is out of its range.

    >>> import torch
    >>> module = MLP(input_shape=(1, 8, 8), num_classes=10, hidden_sizes=[32], norm="batch", drop_prob=0.2)
    >>> module(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    structure = ("activation", "norm", "hidden_sizes")

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
        hidden_sizes: Sequence[int] = (256, 128),
        norm: str | Callable[[int], nn.Module] = "none",
        activation: str | Callable[[], nn.Module] = "relu",
        dropout: str | Callable[[float], nn.Module] = "standard",
        drop_prob: float = 0.0,
        init: str | Callable[[Tensor], Any] = "auto",
        categories: Sequence[int] = (),
        embed_dim: int = 8,
        **settings: Any,
    ) -> None:
        network: Any = partial(
            dense_network,
            input_shape,
            hidden_sizes=hidden_sizes,
            norm=norm,
            activation=activation,
            dropout=dropout,
            drop_prob=drop_prob,
            init=init,
            categories=categories,
            embed_dim=embed_dim,
        )
        super().__init__(network, input_shape=input_shape, **settings)
