"""Zoneout: recurrent layers in which some units keep their state from the previous time step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import override

from lightning_reg.functional.forward.noise import NoiseStream
from lightning_reg.functional.forward.recurrent import zoneout
from lightning_reg.nn.layers.stochastic import uniform_from
from lightning_reg.nn.layers.tracing import traced_whole
from lightning_reg.settings import check_range

__all__ = ["Zoneout", "ZoneoutGRU", "ZoneoutLSTM", "ZoneoutRNN"]

_States = tuple[Tensor, ...]


class Zoneout(nn.RNNBase):
    """Mixin before one of torch's recurrent modules that keeps units of the state from the previous time step."""

    stream: NoiseStream | None = None
    """Source of random numbers; torch's global stream where None."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        p: float = 0.1,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        check_range("p", p, low=0, high=1)
        super().__init__(  # type: ignore[call-arg]  # the next class in the MRO sets its mode
            input_size,  # type: ignore[arg-type]
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
        )
        self.p = p

    @property
    def rates(self) -> tuple[float, ...]:
        """Probability of keeping a unit, for each state of the layer."""
        return (self.p,)

    def step(self, inputs: Tensor, states: _States, weights: Sequence[Tensor | None]) -> _States:
        """Returns the states after one time step without zoneout.

        Args:
            inputs: (N, F).
            states: (N, H) each.
            weights: Weights of the inputs and of the state, and their biases.
        """
        raise NotImplementedError

    @override
    @traced_whole
    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        """Returns outputs and state as torch's module does, with zoneout.

        Args:
            input: (T, N, F), or (N, T, F) with ``batch_first``, (T, F) of one sequence, or packed.
            hx: Initial state; zeros where None.
        """
        if not any(self.rates):
            return super().forward(input, hx)
        packed = input if isinstance(input, PackedSequence) else None
        is_one = isinstance(input, Tensor) and input.ndim == 2
        if isinstance(input, Tensor):
            steps = input.unsqueeze(1) if is_one else input.transpose(0, 1) if self.batch_first else input  # (T, N, F)
            rows, sizes = steps.flatten(0, 1), [steps.shape[1]] * len(steps)
        else:
            rows, sizes = input.data, input.batch_sizes.tolist()
        given = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
        states = tuple(state.unsqueeze(1) if is_one else state for state in given)
        if packed is not None and packed.sorted_indices is not None:
            states = tuple(state.index_select(1, packed.sorted_indices) for state in states)
        if not states:
            directions = 2 if self.bidirectional else 1
            shape = (self.num_layers * directions, sizes[0], self.hidden_size)
            states = tuple(rows.new_zeros(shape) for _ in self.rates)
        found, last = self._read(rows, sizes, states)
        outputs: Any = found
        if packed is not None:
            outputs = packed._replace(data=found)
            if packed.unsorted_indices is not None:
                last = tuple(state.index_select(1, packed.unsorted_indices) for state in last)
        else:
            outputs = found.view(len(sizes), sizes[0], -1)
            outputs = outputs.squeeze(1) if is_one else outputs.transpose(0, 1) if self.batch_first else outputs
        last = tuple(state.squeeze(1) if is_one else state for state in last)
        return outputs, last if len(last) > 1 else last[0]

    def _read(self, rows: Tensor, sizes: list[int], states: _States) -> tuple[Tensor, _States]:
        """Returns the outputs of the last layer, concatenated over time steps, and the last states of all layers.

        Args:
            rows: Inputs of all time steps, concatenated.
            sizes: Number of samples of each time step, which never increases.
            states: (layers and directions, N, H) each.
        """
        zoned: list[Tensor] = []
        if self.training:
            numbers = uniform_from(self.stream, rows, (len(states), len(states[0]), len(rows), self.hidden_size))
            zoned = [drawn < p for drawn, p in zip(numbers, self.rates, strict=True)]
        last: list[_States] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                rows = F.dropout(rows, self.dropout, self.training)
            outputs: list[Tensor] = []
            for end in ("", "_reverse") if self.bidirectional else ("",):
                begin, masks = [state[len(last)] for state in states], [drawn[len(last)] for drawn in zoned]
                found, now = self._read_once(f"_l{layer}{end}", rows, sizes, tuple(begin), masks)
                outputs.append(found)
                last.append(now)
            rows = torch.cat(outputs, -1)
        return rows, tuple(torch.stack(ends) for ends in zip(*last, strict=True))

    def _read_once(
        self, end: str, rows: Tensor, sizes: list[int], states: _States, zoned: list[Tensor]
    ) -> tuple[Tensor, _States]:
        """Reads in one direction of one layer, given by the suffix of its weights' names."""
        names = [f"{name}{end}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        weights = [getattr(self, name, None) for name in names]
        inputs, kept = torch.split(rows, sizes), [torch.split(drawn, sizes) for drawn in zoned]
        order = range(len(sizes))
        is_backwards = end.endswith("_reverse")
        outputs: list[Tensor] = []
        for place in reversed(order) if is_backwards else order:
            size = sizes[place]
            before = tuple(state[:size] for state in states)
            after = self.step(inputs[place], before, weights)
            masks = [drawn[place] for drawn in kept] if kept else [None] * len(after)
            after = tuple(map(zoneout, before, after, masks, self.rates))
            outputs.append(after[0])
            # Sequences that have ended, or haven't begun, keep their state.
            states = tuple(
                new if size == len(old) else torch.cat([new, old[size:].to(new.dtype)])
                for new, old in zip(after, states, strict=True)
            )
        return torch.cat(outputs[::-1] if is_backwards else outputs), states

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"


class ZoneoutLSTM(Zoneout, nn.LSTM):
    """An LSTM some of whose units keep their state from the time step before, drawn anew at each.

    In training a unit of the hidden state keeps its value with probability ``p``, and one of the cell with ``p_cell``,
    whatever the gates say; in evaluation the new state is the expectation. So information and gradients pass through
    many steps more easily. Parameters, and so the keys of checkpoints, are those of ``torch.nn.LSTM``; with rates of 0
    it is that module.

    When to use: overfitting recurrent networks over long sequences. When not: where time is short: in training and in
    evaluation, time steps are a loop instead of one call of torch, which takes two to six times as long on a CPU and
    can't use cuDNN's kernels on a GPU.

    Args:
        input_size: Number of features of one time step.
        hidden_size: Width of the state.
        p: Probability that a unit of the hidden state is kept, in [0, 1]; 0.05 to 0.15 is usual.
        p_cell: Probability that a unit of the cell is kept, in [0, 1]; up to 0.5 is usual; None for ``p``.
        num_layers: Number of stacked layers.
        bias: Whether layers have biases.
        batch_first: Whether sequences are (N, T, F) rather than (T, N, F).
        dropout: Probability of torch's own dropout between layers.
        bidirectional: Whether a second layer reads backward.

    Raises:
        SettingError: If a probability is out of range.

    Reference:
        David Krueger, Tegan Maharaj, János Kramár, Mohammad Pezeshki, Nicolas Ballas, Nan Rosemary Ke, Anirudh Goyal,
        Yoshua Bengio, Aaron Courville, Chris Pal: Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations,
        ICLR 2017, arXiv:1606.01305.

    >>> ZoneoutLSTM(8, 16, p=0.05, p_cell=0.5, batch_first=True)
    ZoneoutLSTM(8, 16, batch_first=True, p=0.05, p_cell=0.5)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        p: float = 0.1,
        p_cell: float | None = None,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        if p_cell is not None:
            check_range("p_cell", p_cell, low=0, high=1)
        super().__init__(
            input_size,
            hidden_size,
            p=p,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
        )
        self.p_cell = p_cell

    @property
    @override
    def rates(self) -> tuple[float, ...]:
        return (self.p, self.p if self.p_cell is None else self.p_cell)

    @override
    def step(self, inputs: Tensor, states: _States, weights: Sequence[Tensor | None]) -> _States:
        hidden, cell = torch.lstm_cell(inputs, list(states), *weights)  # type: ignore[arg-type]
        return hidden, cell

    @override
    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.p_cell is None else f", p_cell={self.p_cell}")


class ZoneoutGRU(Zoneout, nn.GRU):
    """A GRU whose units keep their state at random; everything else as in :class:`ZoneoutLSTM` but the cell."""

    @override
    def step(self, inputs: Tensor, states: _States, weights: Sequence[Tensor | None]) -> _States:
        return (torch.gru_cell(inputs, states[0], *weights),)  # type: ignore[arg-type]


class ZoneoutRNN(Zoneout, nn.RNN):
    """A tanh RNN whose units keep their state at random; everything else as in :class:`ZoneoutLSTM` but the cell."""

    @override
    def step(self, inputs: Tensor, states: _States, weights: Sequence[Tensor | None]) -> _States:
        return (torch.rnn_tanh_cell(inputs, states[0], *weights),)  # type: ignore[arg-type]
