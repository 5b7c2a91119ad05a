"""Stacks of recurrent layers with norm and dropout between them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.init.initialization import Initializer, initialize_
from lightning_reg.nn.layers.tracing import traced_whole
from lightning_reg.nn.layers.weight_drop import WeightDrop, WeightDropGRU, WeightDropLSTM, WeightDropRNN
from lightning_reg.nn.layers.zoneout import Zoneout, ZoneoutGRU, ZoneoutLSTM, ZoneoutRNN
from lightning_reg.nn.networks.sequences import (
    ImageRows,
    SequencePool,
    make_sequence_dropout,
    make_sequence_norm,
    named_sequential,
)
from lightning_reg.settings import SettingError, as_sequence, check_choice, check_count, check_range

__all__ = ["RecurrentLayer", "recurrent_network"]


_CELLS: dict[str, tuple[type[nn.RNNBase], type[WeightDrop], type[Zoneout]]] = {
    "lstm": (nn.LSTM, WeightDropLSTM, ZoneoutLSTM),
    "gru": (nn.GRU, WeightDropGRU, ZoneoutGRU),
    "rnn": (nn.RNN, WeightDropRNN, ZoneoutRNN),
}


class RecurrentLayer(nn.Module):
    """A recurrent module's outputs at every time step, without its state: (N, T, F) becomes (N, T, H).

    Args:
        cell: A recurrent module with ``batch_first``.

    >>> import torch
    >>> RecurrentLayer(nn.GRU(8, 16, batch_first=True))(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(self, cell: nn.RNNBase) -> None:
        super().__init__()
        self.cell = cell

    @override
    @traced_whole
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.cell(inputs)[0]
        return outputs


def recurrent_network(
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    cell: Literal["lstm", "gru", "rnn"] = "lstm",
    hidden_size: int = 128,
    num_layers: int = 1,
    bidirectional: bool = False,
    norm: str | Callable[[int], nn.Module] = "none",
    dropout: str | Callable[[float], nn.Module] = "variational",
    drop_prob: float = 0.0,
    weight_drop_prob: float = 0.0,
    zoneout_prob: float = 0.0,
    init: str | Initializer = "auto",
    pool: Literal["last", "mean", "max"] = "last",
) -> nn.Sequential:
    """Recurrent layers over a sequence or the rows of an image, then one linear layer.

    Each recurrent layer is followed by normalization and dropout. Names of weights don't depend on rates.

    Args:
        input_shape: (T, F) of one sequence or (C, H, W) of one image; later inputs may have other T or H.
        num_outputs: Width of the last layer.
        cell: Kind of recurrent layer: ``"lstm"``, ``"gru"``, or ``"rnn"`` (tanh).
        hidden_size: Width of the state, in each direction.
        num_layers: Number of recurrent layers.
        bidirectional: Whether each layer also reads backward.
        norm: Normalization of each layer's outputs, see :func:`make_sequence_norm`.
        dropout: Dropout after the normalization, see :func:`make_sequence_dropout`.
        drop_prob: Probability of that dropout, in [0, 1].
        weight_drop_prob: Probability that an entry of a recurrent matrix is dropped, in [0, 1].
        zoneout_prob: Probability that a unit keeps its state from the previous time step, in [0, 1], see
            :class:`lightning_reg.nn.ZoneoutLSTM`.
        init: Initialization, see :func:`lightning_reg.init.initialization.initialize_`; ``"auto"`` is for tanh.
        pool: Pooling over time before the last layer, see :class:`SequencePool`.

    Returns:
        A module from (N, *input_shape) to (N, num_outputs).

    Raises:
        SettingError: If a name is unknown, a number is out of range, both ``weight_drop_prob`` and ``zoneout_prob`` are
            positive, or the shape is neither that of a sequence nor that of an image.

    >>> import torch
    >>> network = recurrent_network((1, 8, 8), 10, hidden_size=16, num_layers=2, norm="layer", drop_prob=0.2)
    >>> network(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    input_shape = as_sequence("input_shape", input_shape)
    check_count("num_outputs", num_outputs)
    if len(input_shape) not in (2, 3):
        raise SettingError(
            "input_shape must be (time, features) of a sequence or (channels, height, width) of an image, but is "
            f"{tuple(input_shape)}"
        )
    check_choice("cell", cell, list(_CELLS))
    check_choice("pool", pool, ("last", "mean", "max"))
    check_count("hidden_size", hidden_size)
    check_count("num_layers", num_layers)
    check_range("weight_drop_prob", weight_drop_prob, low=0, high=1)
    check_range("zoneout_prob", zoneout_prob, low=0, high=1)
    if weight_drop_prob and zoneout_prob:
        raise SettingError(
            "weight_drop_prob or zoneout_prob must be 0, because no recurrent layer does both, but they are "
            f"{weight_drop_prob} and {zoneout_prob}"
        )
    width = input_shape[-1] if len(input_shape) == 2 else input_shape[0] * input_shape[2]
    make = _maker(cell, weight_drop_prob, zoneout_prob, bidirectional=bidirectional)
    layers: dict[str, nn.Module] = {"rows": ImageRows()}
    for index in range(num_layers):
        layers[f"recurrent{index}"] = RecurrentLayer(make(width, hidden_size))
        width = 2 * hidden_size if bidirectional else hidden_size
        layers[f"norm{index}"] = make_sequence_norm(norm, width)
        layers[f"dropout{index}"] = make_sequence_dropout(dropout, drop_prob)
    layers["pool"] = SequencePool(pool, bidirectional=bidirectional)
    layers["head"] = nn.Linear(width, num_outputs)
    network = named_sequential(layers)
    initialize_(network, init, nn.Tanh())
    return network


def _maker(
    cell: str, weight_drop_prob: float, zoneout_prob: float, *, bidirectional: bool
) -> Callable[[int, int], nn.RNNBase]:
    plain, dropping, zoning = _CELLS[cell]
    make: Callable[..., nn.RNNBase] = plain
    if weight_drop_prob:
        make = partial(dropping, p=weight_drop_prob)
    elif zoneout_prob:
        make = partial(zoning, p=zoneout_prob)
    return partial(make, batch_first=True, bidirectional=bidirectional)
