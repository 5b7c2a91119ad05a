"""Root-mean-square normalization: forward, and backward term by term."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from typing_extensions import override

from lightning_reg.functional.shapes import check_shape, check_trailing_shape
from lightning_reg.settings import check_range

__all__ = ["RMSNormFunction", "rms_norm"]


class RMSNormFunction(Function):
    r"""Divides every sample by the root of the mean square of its features.

    Of the m features of a sample, the i-th has a scale of its own:

    .. math::
        s = \frac{1}{m} \sum_i x_i^2, \quad
        \hat x_i = \frac{x_i}{\sqrt{s + \epsilon}}, \quad
        y_i = \gamma_i \, \hat x_i

    The scale is shared by all samples n:

    .. math::
        \frac{\partial L}{\partial \gamma_i} = \sum_n \frac{\partial L}{\partial y_{ni}} \, \hat x_{ni}, \quad
        \frac{\partial L}{\partial \hat x_i} = \frac{\partial L}{\partial y_i} \, \gamma_i

    The mean square goes into every x̂_i, by the power −1/2. There is no mean to go through:

    .. math::
        \frac{\partial L}{\partial s} = \sum_i \frac{\partial L}{\partial \hat x_i} \, x_i
        \left(-\frac{1}{2}\right) (s + \epsilon)^{-3/2}

    An input goes into its own x̂_i and into the mean square:

    .. math::
        \frac{\partial L}{\partial x_i} =
        \frac{\partial L}{\partial \hat x_i} \frac{1}{\sqrt{s + \epsilon}}
        + \frac{\partial L}{\partial s} \, \frac{2 \, x_i}{m}
    """

    @override
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.eps = eps
        return weight * inputs / torch.sqrt(_mean_square(inputs, weight) + eps)

    @override
    @staticmethod
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        count = weight.numel()
        # Computed once more from the inputs, so that autograd sees how it depends on them when it differentiates
        # these lines again for a second derivative.
        rms = torch.sqrt(_mean_square(inputs, weight) + ctx.eps)
        normalized = inputs / rms

        grad_weight = (grad_outputs * normalized).sum_to_size(weight.shape)
        grad_normalized = grad_outputs * weight
        grad_mean_square = (grad_normalized * inputs * -0.5 * rms**-3).sum(
            _normalized_dims(inputs, weight), keepdim=True
        )
        grad_inputs = grad_normalized / rms + grad_mean_square * 2 * inputs / count
        return grad_inputs, grad_weight, None


def rms_norm(
    inputs: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, *, eps: float | None = None
) -> Tensor:
    r"""Root-mean-square normalization, as :func:`torch.nn.functional.rms_norm` computes it.

    .. math:: y_i = \gamma_i \, \frac{x_i}{\sqrt{\frac{1}{m} \sum_k x_k^2 + \epsilon}}

    Args:
        inputs: Inputs x, (..., *normalized_shape).
        normalized_shape: Sizes of the last dimensions, over which each sample is normalized.
        weight: Scale γ, of the shape ``normalized_shape``; None for 1.
        eps: Number ε added to the mean square, at least 0; where None, the distance from 1 to the next number of the
            inputs' dtype.

    Returns:
        A tensor of the inputs' shape, twice differentiable in inputs and weight.

    Raises:
        SettingError: If a shape is wrong or ``eps`` is out of range.

    Reference:
        Biao Zhang, Rico Sennrich: Root Mean Square Layer Normalization, NeurIPS 2019, arXiv:1910.07467. Its code adds
        ε to the root; torch, and so this, adds it to the mean square.

    >>> rms_norm(torch.tensor([[3.0, 3.0], [1.0, -1.0]]), (2,), eps=0.0)
    tensor([[ 1.,  1.],
            [ 1., -1.]])
    """
    eps = torch.finfo(inputs.dtype).eps if eps is None else eps
    check_range("eps", eps, low=0)
    check_trailing_shape(inputs, normalized_shape)
    check_shape("weight", weight, normalized_shape)
    scale = inputs.new_ones(tuple(normalized_shape)) if weight is None else weight
    outputs: Tensor = RMSNormFunction.apply(inputs, scale, eps)
    return outputs


def _mean_square(inputs: Tensor, weight: Tensor) -> Tensor:
    return inputs.square().mean(_normalized_dims(inputs, weight), keepdim=True)


def _normalized_dims(inputs: Tensor, weight: Tensor) -> list[int]:
    return list(range(inputs.ndim - weight.ndim, inputs.ndim))
