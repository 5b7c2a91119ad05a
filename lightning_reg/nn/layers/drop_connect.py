"""DropConnect: dropout of weights rather than activations."""

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_reg.functional.forward.dropout import dropout, mixout
from lightning_reg.functional.forward.noise import NoiseStream
from lightning_reg.nn.layers.stochastic import Lease
from lightning_reg.nn.layers.tracing import traced_whole
from lightning_reg.settings import SettingError, check_range

__all__ = [
    "DROP_CONNECTED",
    "DropConnect",
    "DropConnectConv1d",
    "DropConnectConv2d",
    "DropConnectConv3d",
    "DropConnectLinear",
    "drop_connected",
    "mixed_out",
    "plain_again",
]


class DropConnect(nn.Module):
    """Base class of layers with DropConnect: in training, each weight is dropped by itself.

    The parameters, and so the keys of checkpoints, are those of the plain layer. The whole batch shares one mask, so
    that one matrix multiplication is enough; the paper draws one for each sample.

    Reference:
        Li Wan et al.: Regularization of Neural Networks using DropConnect, ICML 2013.
    """

    p: float = 0.5
    """Probability that a weight is dropped, in [0, 1]."""

    stream: NoiseStream | None = None
    """Source of random numbers; torch's global stream where None."""

    has_run: bool = False
    """Whether the layer has run in training mode."""

    lease: Lease | None = None
    """Lifetime of dropping, shared by copies of the layer; unlimited where None."""

    weight: Tensor

    swaps: bool = False
    """Whether weights are swapped for ``start`` rather than dropped; if ``start`` is None, they stay as they are."""

    start: Tensor | None = None
    """Weights of the same shape to swap for, if ``swaps``."""

    def dropped(self, weight: Tensor) -> Tensor:
        """Returns the weights to use in this forward pass."""
        if self.training:
            self.has_run = True
        if not self.training or self.p == 0 or (self.lease is not None and self.lease.has_ended):
            return weight
        if not self.swaps:
            return dropout(weight, self.p, self.stream)
        if self.start is None:
            return weight
        if self.start.device != weight.device:
            self.start = self.start.to(weight.device)
        return mixout(weight, self.start.to(weight.dtype), self.p, self.stream)

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}" + (", swaps=True" if self.swaps else "")


class DropConnectLinear(DropConnect, nn.Linear):
    """A linear layer whose weights are dropped in training; its arguments are those of ``torch.nn.Linear``.

    Made from a plain layer by :func:`drop_connected`.

    Reference:
        Li Wan et al.: Regularization of Neural Networks using DropConnect, ICML 2013.

    >>> drop_connected(nn.Linear(4, 2), 0.25)
    DropConnectLinear(in_features=4, out_features=2, bias=True, p=0.25)
    """

    @override
    @traced_whole
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.dropped(self.weight), self.bias)


class _DropConnectConv(DropConnect):
    @traced_whole
    def forward(self, input: Tensor) -> Tensor:
        outputs: Tensor = super().forward(input)  # of the convolution, next in the MRO
        return outputs

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        outputs: Tensor = super()._conv_forward(input, self.dropped(weight), bias)  # type: ignore[misc]
        return outputs


class DropConnectConv1d(_DropConnectConv, nn.Conv1d):
    """A convolution over (N, C, L) whose weights are dropped in training, made by :func:`drop_connected`."""


class DropConnectConv2d(_DropConnectConv, nn.Conv2d):
    """A convolution over (N, C, H, W) whose weights are dropped in training, made by :func:`drop_connected`."""


class DropConnectConv3d(_DropConnectConv, nn.Conv3d):
    """A convolution over (N, C, D, H, W) whose weights are dropped in training, made by :func:`drop_connected`."""


DROP_CONNECTED: dict[type[nn.Module], type[DropConnect]] = {
    nn.Linear: DropConnectLinear,
    nn.Conv1d: DropConnectConv1d,
    nn.Conv2d: DropConnectConv2d,
    nn.Conv3d: DropConnectConv3d,
}
"""Classes with DropConnect by the class of the plain layer."""


def drop_connected(layer: nn.Module, p: float) -> DropConnect:
    """Makes a plain layer drop its weights in training, in place: references to the layer stay valid.

    Args:
        layer: A Linear, Conv1d, Conv2d or Conv3d of torch.
        p: Probability that a weight is dropped, in [0, 1].

    Raises:
        SettingError: If the layer is of another type, or ``p`` is out of range.

    >>> layer = nn.Conv2d(1, 1, 1)
    >>> drop_connected(layer, 0.5) is layer
    True
    """
    check_range("p", p, low=0, high=1)
    if type(layer) not in DROP_CONNECTED:
        raise SettingError(
            "layer must be one of " + ", ".join(kind.__name__ for kind in DROP_CONNECTED) + ", but is a "
            f"{type(layer).__name__}"
        )
    # Only the class changes: parameters, hooks, mode and references to the layer stay.
    layer.__class__ = DROP_CONNECTED[type(layer)]
    layer.p = p  # type: ignore[assignment]
    return layer  # type: ignore[return-value]


def mixed_out(layer: nn.Module, p: float) -> DropConnect:
    """Makes a plain layer swap its weights at random for its current ones in training, in place (Mixout).

    Checkpoints hold the trained weights alone, not the ones to swap for.

    Args:
        layer: A Linear, Conv1d, Conv2d or Conv3d of torch, with pretrained weights.
        p: Probability that a weight is swapped, in [0, 1].

    Raises:
        SettingError: If the layer is of another type, or ``p`` is out of range.

    Reference:
        Cheolhyoung Lee, Kyunghyun Cho, Wanmo Kang: Mixout: Effective Regularization to Finetune Large-scale Pretrained
        Language Models, ICLR 2020, arXiv:1909.11299.

    >>> layer = mixed_out(nn.Linear(4, 2), 0.9)
    >>> layer.dropped(layer.weight).equal(layer.weight)  # which it starts from
    True
    """
    mixing = drop_connected(layer, p)
    mixing.swaps, mixing.start = True, mixing.weight.detach().clone()
    return mixing


def plain_again(layer: DropConnect) -> None:
    """Undoes :func:`drop_connected`.

    Args:
        layer: Layer that drops its weights.
    """
    plain = {dropping: kind for kind, dropping in DROP_CONNECTED.items()}
    for name in ("p", "stream", "lease", "has_run", "swaps", "start"):
        vars(layer).pop(name, None)
    layer.__class__ = plain[type(layer)]  # type: ignore[assignment]
