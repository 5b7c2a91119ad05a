"""Normalization of feature maps over their channels, for inputs that carry channels in the second dimension."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

__all__ = ["channels_first_layer_norm", "channels_first_rms_norm"]


def channels_first_layer_norm(
    inputs: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Layer normalization over the channels, at every position of a feature map on its own.

    .. math::
        y_c = \gamma_c \, \frac{x_c - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta_c, \quad
        \mu = \tfrac{1}{C} \sum_c x_c, \quad \sigma^2 = \tfrac{1}{C} \sum_c (x_c - \mu)^2

    Args:
        inputs: (N, C, ...), with any number of further dimensions.
        normalized_shape: (C,).
        weight: γ, (C,).
        bias: β, (C,).
        eps: Added to the variance.

    Returns:
        A tensor of the inputs' shape.

    Reference:
        Jimmy Lei Ba, Jamie Ryan Kiros, Geoffrey E. Hinton: Layer Normalization, 2016, arXiv:1607.06450.

    >>> import torch
    >>> out = channels_first_layer_norm(torch.randn(2, 16, 4, 4), (16,))
    >>> bool(out.mean(1).abs().max() < 1e-5)
    True
    """
    return F.layer_norm(inputs.movedim(1, -1), list(normalized_shape), weight, bias, eps).movedim(-1, 1)


def channels_first_rms_norm(
    inputs: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    r"""Root-mean-square normalization over the channels, at every position of a feature map on its own.

    .. math:: y_c = \gamma_c \, \frac{x_c}{\sqrt{\tfrac{1}{C} \sum_k x_k^2 + \epsilon}}

    Args:
        inputs: (N, C, ...), with any number of further dimensions.
        normalized_shape: (C,).
        weight: γ, (C,).
        eps: Added to the mean square; torch's default for the dtype where it is None.

    Returns:
        A tensor of the inputs' shape.

    Reference:
        Biao Zhang, Rico Sennrich: Root Mean Square Layer Normalization, NeurIPS 2019, arXiv:1910.07467.

    >>> import torch
    >>> channels_first_rms_norm(torch.full((1, 4, 2), 3.0), (4,)).mean()
    tensor(1.)
    """
    return F.rms_norm(inputs.movedim(1, -1), list(normalized_shape), weight, eps).movedim(-1, 1)
