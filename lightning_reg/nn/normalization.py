"""Normalization layers that torch doesn't have."""

from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.functional.normalization import channels_first_layer_norm, channels_first_rms_norm

__all__ = ["ChannelsFirstLayerNorm", "ChannelsFirstRMSNorm"]


class ChannelsFirstLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of a feature map (N, C, ...), at every position on its own.

    ``torch.nn.LayerNorm`` wants the channels last; ``torch.nn.GroupNorm(1, C)`` also averages over positions.

    Args:
        num_channels: C.
        eps: Added to the variance.

    Reference:
        Zhuang Liu et al.: A ConvNet for the 2020s, CVPR 2022, arXiv:2201.03545.

    >>> import torch
    >>> ChannelsFirstLayerNorm(8)(torch.randn(2, 8, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    """

    def __init__(self, num_channels: int, *, eps: float = 1e-5) -> None:
        super().__init__(num_channels, eps=eps)

    @override
    def forward(self, input: Tensor) -> Tensor:
        return channels_first_layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class ChannelsFirstRMSNorm(nn.RMSNorm):
    """RMSNorm over the channels of a feature map (N, C, ...), at every position on its own.

    Args:
        num_channels: C.
        eps: Added to the mean square; torch's default for the dtype where it is None.

    Reference:
        Biao Zhang, Rico Sennrich: Root Mean Square Layer Normalization, NeurIPS 2019, arXiv:1910.07467.

    >>> import torch
    >>> ChannelsFirstRMSNorm(8)(torch.randn(2, 8, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    """

    def __init__(self, num_channels: int, *, eps: float | None = None) -> None:
        super().__init__(num_channels, eps=eps)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return channels_first_rms_norm(x, self.normalized_shape, self.weight, self.eps)
