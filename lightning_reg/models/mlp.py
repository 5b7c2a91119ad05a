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

    Each hidden layer is: weights, normalization, activation, dropout. A residual network has the same layers, in blocks
    of normalization, activation, dropout and weights; the output of a block is added to its input, projected where
    widths differ. Its branches are dropped or disturbed with probabilities that rise linearly to that of the last one.

    Args:
        input_shape: Shape of one sample; taken from the data module on the command line.
        hidden_sizes: Widths of the hidden layers, in order.
        norm: Normalization: none, batch, ghost_batch, layer, group, rms, or any callable from the number of
            features to a module.
        activation: none, relu, leaky_relu, elu, selu, gelu, silu, mish, tanh, sigmoid, or any callable that returns a
            module.
        dropout: Kind of dropout: standard, alpha, gaussian; drop_connect (weights), concrete (learns its rate); or any
            callable from the probability to a module.
        drop_prob: Probability that an activation is dropped, in [0, 1].
        init: Initialization: auto (by the activation), default (torch's), zeros, uniform, normal, truncated_normal,
            small_normal, xavier_normal, xavier_uniform, kaiming_normal, kaiming_uniform, kaiming_normal_fan_out,
            kaiming_uniform_fan_out, lecun_normal, orthogonal, lsuv (orthogonal, scaled by the first training batch), or
            a function that fills a weight tensor in place.
        categories: Number of categories of each of the last columns, which are embedded, code 0 included; taken from
            the data module on the command line.
        embed_dim: Width of a category's vector, at least 1.
        residual: Whether each hidden layer after the first adds to its input.
        stochastic_depth_prob: Probability that the last branch is dropped, in [0, 1].
        shake_drop_prob: Probability that ShakeDrop disturbs the last branch, in [0, 1]; not both.
        settings: Arguments of :class:`Supervised` other than ``network``.

    Raises:
        SettingError: If a name is unknown, a number is out of range, or there are no branches to drop.

    Reference:
        Residual branches: Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, ECCV 2016, arXiv:1603.05027. ShakeDrop:
        Yoshihiro Yamada, Masakazu Iwamura, Takuya Akiba, Koichi Kise, IEEE Access 2019, arXiv:1802.02375.

    >>> import torch
    >>> module = MLP(input_shape=(1, 8, 8), num_classes=10, hidden_sizes=[32], norm="batch", drop_prob=0.2)
    >>> module(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    structure = ("activation", "norm", "hidden_sizes", "residual")

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
        residual: bool = False,
        stochastic_depth_prob: float = 0.0,
        shake_drop_prob: float = 0.0,
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
            residual=residual,
            stochastic_depth_prob=stochastic_depth_prob,
            shake_drop_prob=shake_drop_prob,
        )
        super().__init__(network, input_shape=input_shape, **settings)
