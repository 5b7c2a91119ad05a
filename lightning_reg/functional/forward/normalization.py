"""Normalization of inputs with channels in the second dimension, and of weights."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_reg.functional.shapes import check_several_values, check_with_channels
from lightning_reg.settings import SettingError

__all__ = [
    "channels_first_layer_norm",
    "channels_first_rms_norm",
    "filter_response_norm",
    "ghost_batches",
    "standardized_weight",
]


def channels_first_layer_norm(
    inputs: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Layer normalization over the channels, separately at every position of a feature map.

    .. math::
        y_c = \gamma_c \, \frac{x_c - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta_c, \quad
        \mu = \tfrac{1}{C} \sum_c x_c, \quad \sigma^2 = \tfrac{1}{C} \sum_c (x_c - \mu)^2

    Args:
        inputs: (N, C, ...), with any number of further dimensions.
        normalized_shape: Number of channels, as a tuple (C,).
        weight: Scale γ, (C,).
        bias: Shift β, (C,).
        eps: Number ε added to the variance.

    Returns:
        A tensor of the inputs' shape and memory format.

    Raises:
        SettingError: If there is no channel dimension, or its size differs.

    Reference:
        Jimmy Lei Ba, Jamie Ryan Kiros, Geoffrey E. Hinton: Layer Normalization, 2016, arXiv:1607.06450.

    >>> import torch
    >>> out = channels_first_layer_norm(torch.randn(2, 16, 4, 4), (16,))
    >>> bool(out.mean(1).abs().max() < 1e-5)
    True
    """
    check_with_channels(inputs, *normalized_shape)
    return _channels_back(F.layer_norm(inputs.movedim(1, -1), list(normalized_shape), weight, bias, eps), inputs)


def channels_first_rms_norm(
    inputs: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    r"""Root-mean-square normalization over the channels, separately at every position of a feature map.

    .. math:: y_c = \gamma_c \, \frac{x_c}{\sqrt{\tfrac{1}{C} \sum_k x_k^2 + \epsilon}}

    Args:
        inputs: (N, C, ...), with any number of further dimensions.
        normalized_shape: Number of channels, as a tuple (C,).
        weight: Scale γ, (C,).
        eps: Number ε added to the mean square; None for torch's default for the dtype.

    Returns:
        A tensor of the inputs' shape, dtype and memory format.

    Raises:
        SettingError: If there is no channel dimension, or its size differs.

    Reference:
        Biao Zhang, Rico Sennrich: Root Mean Square Layer Normalization, NeurIPS 2019, arXiv:1910.07467.

    >>> import torch
    >>> channels_first_rms_norm(torch.full((1, 4, 2), 3.0), (4,)).mean()
    tensor(1.)
    """
    check_with_channels(inputs, *normalized_shape)
    # torch warns if the dtypes differ, as they do under autocast, and has no fused kernel for that.
    precise = inputs if weight is None else inputs.to(torch.promote_types(inputs.dtype, weight.dtype))
    outputs = F.rms_norm(precise.movedim(1, -1), list(normalized_shape), weight, eps)
    return _channels_back(outputs.to(inputs.dtype), inputs)


def filter_response_norm(
    inputs: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    threshold: Tensor | None = None,
    eps: float | Tensor = 1e-6,
) -> Tensor:
    r"""Divides every channel of every sample by the root of its mean square over all positions, and thresholds it.

    .. math::
        z_{ci} = \max(y_{ci}, \tau_c), \quad
        y_{ci} = \gamma_c \, \frac{x_{ci}}{\sqrt{\tfrac{1}{m} \sum_j x_{cj}^2 + \epsilon}} + \beta_c

    No mean is subtracted. The threshold makes up for that: it is a ReLU with a learned corner.

    Args:
        inputs: (N, C, L, ...), with at least one dimension of positions.
        weight: Scale γ, (C,); None for 1.
        bias: Shift β, (C,); None for 0.
        threshold: (C,), threshold τ; None for no threshold.
        eps: Number ε > 0 added to the mean square; a scalar tensor if it is learned.

    Returns:
        A tensor of the inputs' shape, dtype and memory format.

    Raises:
        SettingError: If there are no positions, or the number of channels differs from that of the weights.

    Reference:
        Saurabh Singh, Shankar Krishnan: Filter Response Normalization Layer: Eliminating Batch Dependence in the
        Training of Deep Neural Networks, CVPR 2020, arXiv:1911.09737.

    >>> filter_response_norm(torch.tensor([[[3.0, -3.0]]]), threshold=torch.tensor([-0.5]))
    tensor([[[ 1.0000, -0.5000]]])
    """
    given = [values for values in (weight, bias, threshold) if values is not None]
    check_with_channels(inputs, len(given[0]) if given else None, positions=True)
    view = (-1, *[1] * (inputs.ndim - 2))
    # At least in float32: squares of float16 overflow beyond 256.
    precise = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    mean_square = precise.square().mean(list(range(2, inputs.ndim)), keepdim=True)  # (N, C, 1, ...)
    scale = torch.rsqrt(mean_square + eps)
    outputs = precise * (scale if weight is None else scale * weight.view(view))
    if bias is not None:
        outputs = outputs + bias.view(view)
    if threshold is not None:
        outputs = torch.maximum(outputs, threshold.view(view))
    return outputs.to(inputs.dtype)


def ghost_batches(inputs: Tensor, ghost_batch_size: int) -> tuple[Tensor, ...]:
    """Splits a batch into ghost batches, which batch normalization normalizes separately.

    There are as few as possible of at most the given size, and sizes differ by at most one. Where a ghost batch would
    have a single value per channel, there are fewer and larger ones.

    Args:
        inputs: (N, C, ...).
        ghost_batch_size: Largest number of samples of a ghost batch, at least 1.

    Returns:
        Views of the inputs, in order.

    Raises:
        SettingError: If there is no channel dimension, or a single value per channel in the whole batch.

    Reference:
        Elad Hoffer, Itay Hubara, Daniel Soudry: Train longer, generalize better: closing the generalization gap in
        large batch training of neural networks, NeurIPS 2017, arXiv:1705.08741.

    >>> [len(ghost) for ghost in ghost_batches(torch.zeros(70, 8), 32)]
    [24, 23, 23]
    """
    check_with_channels(inputs)
    check_several_values(inputs)
    samples, positions = inputs.shape[0], math.prod(inputs.shape[2:])
    most = samples if positions > 1 else samples // 2
    count = min(math.ceil(samples / ghost_batch_size), most)
    return torch.tensor_split(inputs, count)


def standardized_weight(weight: Tensor, *, dim: int = 0, groups: int = 1, eps: float = 1e-5) -> Tensor:
    r"""Gives the weights of every output unit mean 0 and variance 1.

    .. math::
        \hat W_{oi} = \frac{W_{oi} - \mu_o}{\sqrt{\sigma_o^2 + \epsilon}}, \quad
        \mu_o = \tfrac{1}{I} \sum_i W_{oi}, \quad \sigma_o^2 = \tfrac{1}{I} \sum_i (W_{oi} - \mu_o)^2

    Args:
        weight: Weight W of a linear layer or a convolution; each output unit o has I weights, one for each of its
            inputs (and each position of the kernel).
        dim: Dimension of the output units: 0, or 1 for transposed convolutions.
        groups: Number of groups of a transposed convolution, whose first dimension covers the inputs of all groups.
            Other convolutions don't need it, whatever their groups.
        eps: Number ε ≥ 0 added to the variance.

    Returns:
        A tensor of the weight's shape, dtype and memory format.

    Raises:
        SettingError: If an output unit has a single weight, which would become 0, or ``groups`` doesn't divide the
            inputs.

    Reference:
        Siyuan Qiao et al.: Micro-Batch Training with Batch-Channel Normalization and Weight Standardization, 2019,
        arXiv:1903.10520. Its code adds ε to the root of an unbiased variance; this is the formula of its text.

    >>> standardized_weight(torch.tensor([[1.0, 3.0], [5.0, 5.0]]))
    tensor([[-1.0000,  1.0000],
            [ 0.0000,  0.0000]])
    """
    parts, units = weight, [0]
    if dim == 1 and weight.ndim > 1:
        if len(weight) % groups:
            raise SettingError(f"groups must divide the {len(weight)} inputs of the weight, but is {groups}")
        # Inputs of a transposed convolution are separated by group: (G, I / G, O / G, ...).
        parts, units = weight.reshape(groups, -1, *weight.shape[1:]), [0, 2]
    dims = [index for index in range(parts.ndim) if index not in units]
    if math.prod([parts.shape[dim] for dim in dims]) < 2:
        raise SettingError(
            f"weight must have at least two elements per output unit, but has the shape {tuple(weight.shape)} with "
            f"output units in dimension {dim}"
        )
    precise = parts.to(torch.promote_types(weight.dtype, torch.float32))
    variance, mean = torch.var_mean(precise, dims, correction=0, keepdim=True)
    standardized = (precise - mean) * torch.rsqrt(variance + eps)
    return standardized.reshape(weight.shape).to(weight.dtype)


def _channels_back(outputs: Tensor, inputs: Tensor) -> Tensor:
    """Moves channels back to the second dimension, in the inputs' memory format: the view is channels_last."""
    moved = outputs.movedim(-1, 1)
    return moved.contiguous() if inputs.is_contiguous() else moved
