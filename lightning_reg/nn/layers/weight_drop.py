"""Dropout of the recurrent matrices of torch's recurrent modules."""

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import override

from lightning_reg.nn.layers.drop_connect import DropConnect
from lightning_reg.nn.layers.tracing import traced_whole
from lightning_reg.settings import check_range

__all__ = ["WeightDrop", "WeightDropGRU", "WeightDropLSTM", "WeightDropRNN"]


class WeightDrop(DropConnect, nn.RNNBase):
    """Mixin before one of torch's recurrent modules that drops entries of the recurrent matrices in training."""

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

    @override
    @traced_whole
    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        """Returns the outputs and the state of torch's module, with one mask for all time steps.

        Args:
            input: (T, N, F), or (N, T, F) with ``batch_first``, or packed.
            hx: Initial state; zeros where None.
        """
        if not self.training or self.p == 0:
            return super().forward(input, hx)
        self._update_flat_weights()
        weights: list[Any] = self._flat_weights
        try:
            # All are copies, not only those with a mask: cuDNN needs them in one chunk of memory, and would otherwise
            # warn and copy them there in every call, or move the parameters themselves.
            self._flat_weights = [
                self.dropped(weight) if name.startswith("weight_hh") else weight.clone()
                for name, weight in zip(self._flat_weights_names, weights, strict=True)
            ]
            self.flatten_parameters()
            return super().forward(input, hx)
        finally:
            self._flat_weights = weights


class WeightDropLSTM(WeightDrop, nn.LSTM):
    """An LSTM whose recurrent matrices lose entries in training: one mask a forward pass, for all of its time steps.

    What it does: regularizes the connections from one time step to the next, where dropout of activations would disturb
    the memory in the state. When to use: overfitting recurrent networks, together with variational dropout between
    layers. When not: where memory or time is short; every forward pass copies the weights once. Parameters, and so the
    keys of checkpoints, are those of ``torch.nn.LSTM``.

    Args:
        input_size: Number of features of one time step.
        hidden_size: Width of the state.
        p: Probability that an entry of a recurrent matrix is dropped, in [0, 1].
        num_layers: Number of stacked layers.
        bias: Whether layers have biases.
        batch_first: Whether sequences are (N, T, F) rather than (T, N, F).
        dropout: Probability of torch's own dropout between layers.
        bidirectional: Whether a second layer reads backward.

    Raises:
        SettingError: If ``p`` is out of range.

    Reference:
        Stephen Merity, Nitish Shirish Keskar, Richard Socher: Regularizing and Optimizing LSTM Language Models, ICLR
        2018, arXiv:1708.02182.

    >>> WeightDropLSTM(8, 16, p=0.3, batch_first=True)
    WeightDropLSTM(8, 16, batch_first=True, p=0.3)
    """


class WeightDropGRU(WeightDrop, nn.GRU):
    """A GRU whose recurrent matrices lose entries in training; everything else as in :class:`WeightDropLSTM`."""


class WeightDropRNN(WeightDrop, nn.RNN):
    """A tanh RNN whose recurrent matrices lose entries in training; everything else as in :class:`WeightDropLSTM`."""
