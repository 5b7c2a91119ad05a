"""Recurrent networks: dropout of the recurrent matrix, and stacks of layers with norm and dropout between them."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import override

from lightning_reg.functional.initialization import Initializer, initialize_
from lightning_reg.nn.drop_connect import DropConnect
from lightning_reg.nn.sequences import (
    PictureRows,
    SequencePool,
    make_sequence_dropout,
    make_sequence_norm,
    named_sequential,
)
from lightning_reg.settings import SettingError, check_choice, check_count, check_range

__all__ = ["RecurrentLayer", "WeightDropGRU", "WeightDropLSTM", "WeightDropRNN", "recurrent_network"]


class _WeightDrop(DropConnect, nn.RNNBase):
    """Drops entries of the recurrent matrices in training; stands before one of torch's recurrent modules."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        p: float = 0.5,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        check_range("p", p, low=0, high=1, high_open=True)
        super().__init__(  # type: ignore[call-arg]  # the class behind this one knows its mode by itself
            input_size,  # type: ignore[arg-type]
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
        )
        self.p = p

    @override
    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        """Returns what torch's module returns, with one mask for all time steps.

        Args:
            input: (T, N, F), or (N, T, F) with ``batch_first``, or packed.
            hx: State to begin with; zeros where None.
        """
        if not self.training or self.p == 0:
            return super().forward(input, hx)
        self._update_flat_weights()
        weights: list[Any] = self._flat_weights
        try:
            # All are copies, not only those with a mask: cuDNN wants them in one piece of memory, and would otherwise
            # warn and put them there in every call, or move the parameters themselves.
            self._flat_weights = [
                self.dropped(weight) if name.startswith("weight_hh") else weight.clone()
                for name, weight in zip(self._flat_weights_names, weights, strict=True)
            ]
            self.flatten_parameters()
            return super().forward(input, hx)
        finally:
            self._flat_weights = weights


class WeightDropLSTM(_WeightDrop, nn.LSTM):
    """An LSTM whose recurrent matrices lose entries in training: one mask a forward pass, for all of its time steps.

    What it does: regularizes the connections from one time step to the next, where dropout of activations would disturb
    what the state remembers. When to use: overfitting recurrent networks, beside variational dropout between layers.
    When not: to save memory or time; every forward pass copies the weights once. Parameters, and so the keys of
    checkpoints, are those of ``torch.nn.LSTM``.

    Args:
        input_size: Features of one time step.
        hidden_size: Width of the state.
        p: Probability that an entry of a recurrent matrix is dropped, in [0, 1).
        num_layers: Layers on top of each other.
        bias: Whether there are biases.
        batch_first: Whether sequences are (N, T, F) rather than (T, N, F).
        dropout: Probability of torch's own dropout between layers.
        bidirectional: Whether a second layer reads backwards.

    Raises:
        SettingError: If ``p`` is out of its range.

    Reference:
        Stephen Merity, Nitish Shirish Keskar, Richard Socher: Regularizing and Optimizing LSTM Language Models, ICLR
        2018, arXiv:1708.02182.

    >>> WeightDropLSTM(8, 16, p=0.3, batch_first=True)
    WeightDropLSTM(8, 16, batch_first=True, p=0.3)
    """


class WeightDropGRU(_WeightDrop, nn.GRU):
    """A GRU whose recurrent matrices lose entries in training; everything else as in :class:`WeightDropLSTM`."""


class WeightDropRNN(_WeightDrop, nn.RNN):
    """A tanh RNN whose recurrent matrices lose entries in training; everything else as in :class:`WeightDropLSTM`."""


_CELLS: dict[str, tuple[type[nn.RNNBase], type[_WeightDrop]]] = {
    "lstm": (nn.LSTM, WeightDropLSTM),
    "gru": (nn.GRU, WeightDropGRU),
    "rnn": (nn.RNN, WeightDropRNN),
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
    init: str | Initializer = "auto",
    pool: Literal["last", "mean", "max"] = "last",
) -> nn.Sequential:
    """Recurrent layers over a sequence or the rows of a picture, then one linear layer.

    Each recurrent layer is followed by normalization and dropout. Names of weights don't depend on rates.

    Args:
        input_shape: (T, F) of one sequence or (C, H, W) of one picture; T, H and N may be others later.
        num_outputs: Width of the last layer.
        cell: ``"lstm"``, ``"gru"``, or ``"rnn"`` (tanh).
        hidden_size: Width of the state, in each direction.
        num_layers: Recurrent layers.
        bidirectional: Whether each layer also reads backwards.
        norm: Normalization of each layer's outputs, see :func:`make_sequence_norm`.
        dropout: Dropout after it, see :func:`make_sequence_dropout`.
        drop_prob: Its probability, in [0, 1).
        weight_drop_prob: Probability that an entry of a recurrent matrix is dropped, in [0, 1).
        init: See :func:`lightning_reg.functional.initialization.initialize_`; ``"auto"`` is for tanh.
        pool: What the last layer sees of the sequence, see :class:`SequencePool`.

    Returns:
        A module from (N, *input_shape) to (N, num_outputs).

    Raises:
        SettingError: If a name isn't known, a number is out of its range, or the shape is neither.

    >>> import torch
    >>> network = recurrent_network((1, 8, 8), 10, hidden_size=16, num_layers=2, norm="layer", drop_prob=0.2)
    >>> network(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    if len(input_shape) not in (2, 3):
        raise SettingError(
            "input_shape must be (time, features) of a sequence or (channels, height, width) of a picture, but is "
            f"{tuple(input_shape)}"
        )
    check_choice("cell", cell, list(_CELLS))
    check_choice("pool", pool, ("last", "mean", "max"))
    check_count("hidden_size", hidden_size)
    check_count("num_layers", num_layers)
    check_range("weight_drop_prob", weight_drop_prob, low=0, high=1, high_open=True)
    width = input_shape[-1] if len(input_shape) == 2 else input_shape[0] * input_shape[2]
    layers: dict[str, nn.Module] = {"rows": PictureRows()}
    for index in range(num_layers):
        layers[f"recurrent{index}"] = RecurrentLayer(
            _make_cell(cell, width, hidden_size, bidirectional=bidirectional, weight_drop_prob=weight_drop_prob)
        )
        width = 2 * hidden_size if bidirectional else hidden_size
        layers[f"norm{index}"] = make_sequence_norm(norm, width)
        layers[f"dropout{index}"] = make_sequence_dropout(dropout, drop_prob)
    layers["pool"] = SequencePool(pool, bidirectional=bidirectional)
    layers["head"] = nn.Linear(width, num_outputs)
    network = named_sequential(layers)
    initialize_(network, init, nn.Tanh())
    return network


def _make_cell(
    cell: str, input_size: int, hidden_size: int, *, bidirectional: bool, weight_drop_prob: float
) -> nn.RNNBase:
    plain, dropping = _CELLS[cell]
    if weight_drop_prob:
        return dropping(input_size, hidden_size, p=weight_drop_prob, batch_first=True, bidirectional=bidirectional)
    make: Callable[..., nn.RNNBase] = plain
    return make(input_size, hidden_size, batch_first=True, bidirectional=bidirectional)
