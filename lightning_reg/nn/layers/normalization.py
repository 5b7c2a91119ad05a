"""Normalization layers that torch doesn't have."""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from lightning_reg.functional.forward.normalization import (
    channels_first_layer_norm,
    channels_first_rms_norm,
    filter_response_norm,
    ghost_batches,
    standardized_weight,
)
from lightning_reg.functional.shapes import check_with_channels
from lightning_reg.nn.layers.tracing import traced_whole
from lightning_reg.settings import SettingError, check_count, check_range

__all__ = [
    "ChannelsFirstLayerNorm",
    "ChannelsFirstRMSNorm",
    "FilterResponseNorm",
    "GhostBatchNorm",
    "StandardizedWeight",
]


class ChannelsFirstLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of a feature map (N, C, ...), at every position on its own.

    ``torch.nn.LayerNorm`` expects the channels last; ``torch.nn.GroupNorm(1, C)`` also averages over positions.

    Args:
        num_channels: Number of channels C, at least 1.
        eps: Number added to the variance, at least 0.

    Raises:
        SettingError: If a number is out of range.

    Reference:
        Zhuang Liu et al.: A ConvNet for the 2020s, CVPR 2022, arXiv:2201.03545.

    >>> import torch
    >>> ChannelsFirstLayerNorm(8)(torch.randn(2, 8, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    """

    def __init__(self, num_channels: int, *, eps: float = 1e-5) -> None:
        check_count("num_channels", num_channels)
        check_range("eps", eps, low=0)
        super().__init__(num_channels, eps=eps)

    @override
    @traced_whole
    def forward(self, input: Tensor) -> Tensor:
        return channels_first_layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class ChannelsFirstRMSNorm(nn.RMSNorm):
    """RMSNorm over the channels of a feature map (N, C, ...), at every position on its own.

    Args:
        num_channels: Number of channels C, at least 1.
        eps: Number added to the mean square, at least 0; None for torch's default for the dtype.

    Raises:
        SettingError: If a number is out of range.

    Reference:
        Biao Zhang, Rico Sennrich: Root Mean Square Layer Normalization, NeurIPS 2019, arXiv:1910.07467.

    >>> import torch
    >>> ChannelsFirstRMSNorm(8)(torch.randn(2, 8, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    """

    def __init__(self, num_channels: int, *, eps: float | None = None) -> None:
        check_count("num_channels", num_channels)
        if eps is not None:
            check_range("eps", eps, low=0)
        super().__init__(num_channels, eps=eps)

    @override
    @traced_whole
    def forward(self, x: Tensor) -> Tensor:
        return channels_first_rms_norm(x, self.normalized_shape, self.weight, self.eps)


class GhostBatchNorm(_BatchNorm):
    """BatchNorm that normalizes small parts of a batch by themselves, as if they were batches.

    The noise of small batches regularizes; here a batch may be large and the noise stays. Use it where large batches
    generalize worse than small ones. The cost is that of BatchNorm, in several kernels instead of one. In evaluation it
    is BatchNorm.

    Running statistics are updated by one ghost batch after the other, as in the paper; so ``momentum`` is per ghost
    batch, and ``num_batches_tracked`` counts ghost batches. Unlike the paper, it averages the variance (unbiased, as in
    torch), not the standard deviation. A trainer with ``sync_batchnorm=True`` replaces it by its opposite,
    SyncBatchNorm, like any BatchNorm.

    Args:
        num_features: Number of channels C of inputs (N, C, ...) of rank 2 or more.
        ghost_batch_size: Largest number of samples that are normalized together, at least 1. Where there are no
            positions and a ghost batch would have a single sample, it is merged with another.
        eps: Number added to the variance.
        momentum: Weight of a ghost batch in the running statistics, in [0, 1]; None for the average over all.
        affine: Whether to learn a scale and a shift for each channel.
        track_running_stats: Whether to keep running statistics; without them evaluation normalizes by the batch.
        bias: Whether to learn the shift, where there is a scale.

    Raises:
        SettingError: If a number is out of range; in training, if a channel has a single value in the whole batch.

    Reference:
        Elad Hoffer, Itay Hubara, Daniel Soudry: Train longer, generalize better: closing the generalization gap in
        large batch training of neural networks, NeurIPS 2017, arXiv:1705.08741.

    >>> import torch
    >>> layer = GhostBatchNorm(8, ghost_batch_size=16)
    >>> layer(torch.randn(64, 8, 5, 5)).shape, int(layer.num_batches_tracked)
    (torch.Size([64, 8, 5, 5]), 4)
    """

    def __init__(
        self,
        num_features: int,
        *,
        ghost_batch_size: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        bias: bool = True,
    ) -> None:
        check_count("num_features", num_features)
        check_count("ghost_batch_size", ghost_batch_size)
        check_range("eps", eps, low=0, low_open=True)
        if momentum is not None:
            check_range("momentum", momentum, low=0, high=1)
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.ghost_batch_size = ghost_batch_size
        if not bias:
            self.register_parameter("bias", None)  # older versions of torch have no argument for it

    @override
    @traced_whole
    def forward(self, input: Tensor) -> Tensor:
        normalize = super().forward
        if not self.training or not input.numel():
            return normalize(input)
        return torch.cat([normalize(ghost) for ghost in ghost_batches(input, self.ghost_batch_size)])

    @override
    def _check_input_dim(self, input: Tensor) -> None:
        check_with_channels(input, self.num_features)

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_batch_size={self.ghost_batch_size}"  # type: ignore[no-untyped-call]


class FilterResponseNorm(nn.Module):
    """Filter response normalization: each channel of each sample by its mean square over positions, then a threshold.

    It depends on no other sample, so batches may be of any size and evaluation is like training. The threshold replaces
    the activation after it (``activation="none"``): initially it is a ReLU, then its corner is learned. The cost is
    that of a normalization and an activation, in several kernels.

    Args:
        num_channels: Number of channels C of inputs (N, C, L, ...) of rank 3 or more.
        eps: Number added to the mean square, greater than 0.
        learn_eps: Whether to learn a number that is added on top of ``eps``, initially 1e-4. It is needed where maps
            may have a single position, of which otherwise only the sign would be left.
        threshold: Whether to learn a threshold (TLU). Without it the activation that follows has to make up for means
            that aren't subtracted.

    Raises:
        SettingError: If a number is out of range; in forward, if there are no positions or, without ``learn_eps``, a
            single one.

    Reference:
        Saurabh Singh, Shankar Krishnan: Filter Response Normalization Layer: Eliminating Batch Dependence in the
        Training of Deep Neural Networks, CVPR 2020, arXiv:1911.09737.

    >>> import torch
    >>> FilterResponseNorm(8)(torch.randn(2, 8, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self, num_channels: int, *, eps: float = 1e-6, learn_eps: bool = False, threshold: bool = True
    ) -> None:
        super().__init__()
        check_count("num_channels", num_channels)
        check_range("eps", eps, low=0, low_open=True)
        self.num_channels = num_channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.threshold = nn.Parameter(torch.zeros(num_channels)) if threshold else None
        self.extra_eps = nn.Parameter(torch.full((1,), 1e-4)) if learn_eps else None

    @override
    @traced_whole
    def forward(self, inputs: Tensor) -> Tensor:
        """Returns a tensor of the inputs' shape, dtype and memory format.

        Args:
            inputs: (N, C, L, ...).
        """
        if self.extra_eps is None and math.prod(inputs.shape[2:]) == 1 and inputs.ndim > 2:
            raise SettingError(
                "inputs of FilterResponseNorm must have more than one position where learn_eps is False, but have the "
                f"shape {tuple(inputs.shape)}"
            )
        eps = self.eps if self.extra_eps is None else self.eps + self.extra_eps.abs()
        return filter_response_norm(inputs, self.weight, self.bias, self.threshold, eps)

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.num_channels}, eps={self.eps}, learn_eps={self.extra_eps is not None}, "
            f"threshold={self.threshold is not None}"
        )


class StandardizedWeight(nn.Module):
    """A parametrization: the weights of each output unit are used with mean 0 and variance 1.

    Use it with group normalization, where batches are too small for BatchNorm. The layer needs a normalization after
    it: its outputs grow with the number of its inputs. The cost is one pass over the weights in each forward pass.

    Args:
        dim: Dimension of the weight for the output units: 0, or 1 for transposed convolutions.
        groups: Groups of a transposed convolution; 1 for all other layers.
        eps: Number added to the variance of the weights, at least 0.

    Raises:
        SettingError: If an argument is out of range; at registration, if an output unit has a single weight.

    Reference:
        Siyuan Qiao et al.: Micro-Batch Training with Batch-Channel Normalization and Weight Standardization, 2019,
        arXiv:1903.10520. Its code adds ε to the root of an unbiased variance; this is the formula of its text.

    >>> from torch.nn.utils.parametrize import register_parametrization
    >>> layer = register_parametrization(nn.Conv2d(3, 8, 3), "weight", StandardizedWeight())
    >>> bool((layer.weight.flatten(1).mean(1).abs() < 1e-6).all())
    True
    """

    def __init__(self, *, dim: int = 0, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        if dim not in (0, 1):
            raise SettingError(f"dim must be 0 or 1, but is {dim!r}")
        check_count("groups", groups)
        check_range("eps", eps, low=0)
        self.dim = dim
        self.groups = groups
        self.eps = eps

    @override
    @traced_whole
    def forward(self, weight: Tensor) -> Tensor:
        """Returns the standardized weight.

        Args:
            weight: Weight before standardization.
        """
        return standardized_weight(weight, dim=self.dim, groups=self.groups, eps=self.eps)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Returns the assigned weight unchanged, as the new parameter."""
        return weight

    @override
    def extra_repr(self) -> str:
        return f"dim={self.dim}, groups={self.groups}, eps={self.eps}"
