"""A recurrent network with pluggable cells, normalization, dropout and initialization."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from lightning_reg.models.supervised import Supervised
from lightning_reg.nn import recurrent_network

__all__ = ["RNN"]


class RNN(Supervised):
    """A recurrent network that classifies sequences, or images read row by row.

    Each layer is: an LSTM, GRU or tanh RNN, normalization, dropout. An image (C, H, W) is a sequence of H steps with
    C·W features. Gradients through many steps can explode; the callback GradientClipping bounds them.

    Args:
        input_shape: (time, features) of a sequence or (channels, height, width) of an image; taken from the data
            module on the command line.
        cell: Kind of recurrent layer: ``"lstm"``, ``"gru"``, or ``"rnn"`` (tanh).
        hidden_size: Width of the state, in each direction.
        num_layers: Number of stacked recurrent layers.
        bidirectional: Whether each layer also reads backwards.
        norm: Normalization of each layer's outputs: none, layer, rms (each time step by itself), batch, ghost_batch,
            group, instance, filter_response (over time, too), or any callable from the number of features to a module.
        dropout: Kind of dropout after each layer: variational (a feature is dropped at all time steps), standard,
            alpha, gaussian, drop_block (stretches of 7 steps), or any callable from the probability to a module.
        drop_prob: Probability of that dropout, in [0, 1].
        weight_drop_prob: Probability that an entry of a recurrent matrix is dropped, for all time steps of a forward
            pass, in [0, 1].
        zoneout_prob: Probability that a unit keeps its state from the previous time step, in [0, 1]; not together with
            ``weight_drop_prob``.
        init: Initialization: auto (orthogonal recurrent weights, an open forget gate), default (torch's), zeros,
            uniform, normal, truncated_normal, small_normal, xavier_normal, xavier_uniform, kaiming_normal,
            kaiming_uniform, kaiming_normal_fan_out, kaiming_uniform_fan_out, lecun_normal, orthogonal, lsuv
            (orthogonal, scaled by the first training batch), or a function that fills a weight tensor in place.
        pool: Input of the last linear layer: the ``"last"`` outputs (each direction's own), their ``"mean"`` or
            ``"max"`` over time.
        settings: Arguments of :class:`Supervised` other than ``network``.

    Raises:
        SettingError: If a name is unknown, a number is out of range, or inputs are neither sequences nor images.

    Reference:
        Variational dropout: Yarin Gal, Zoubin Ghahramani, NeurIPS 2016, arXiv:1512.05287. Dropped recurrent weights:
        Stephen Merity, Nitish Shirish Keskar, Richard Socher, ICLR 2018, arXiv:1708.02182. Zoneout: David Krueger et
        al., ICLR 2017, arXiv:1606.01305.

    >>> import torch
    >>> module = RNN(input_shape=(1, 8, 8), num_classes=10, cell="gru", hidden_size=16, drop_prob=0.2)
    >>> module(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    structure = ("norm", "pool", "cell", "hidden_size", "num_layers", "bidirectional")

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
        cell: Literal["lstm", "gru", "rnn"] = "lstm",
        hidden_size: int = 128,
        num_layers: int = 1,
        bidirectional: bool = False,
        norm: str | Callable[[int], nn.Module] = "none",
        dropout: str | Callable[[float], nn.Module] = "variational",
        drop_prob: float = 0.0,
        weight_drop_prob: float = 0.0,
        zoneout_prob: float = 0.0,
        init: str | Callable[[Tensor], Any] = "auto",
        pool: Literal["last", "mean", "max"] = "last",
        **settings: Any,
    ) -> None:
        network: Any = partial(
            recurrent_network,
            input_shape,
            cell=cell,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bidirectional=bidirectional,
            norm=norm,
            dropout=dropout,
            drop_prob=drop_prob,
            weight_drop_prob=weight_drop_prob,
            zoneout_prob=zoneout_prob,
            init=init,
            pool=pool,
        )
        super().__init__(network, input_shape=input_shape, **settings)
