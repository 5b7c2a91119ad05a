"""Layer normalization: forward, and backward term by term."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from typing_extensions import override

from lightning_reg.functional.shapes import check_shape, check_trailing_shape
from lightning_reg.settings import check_range

__all__ = ["LayerNormFunction", "layer_norm"]


class LayerNormFunction(Function):
    r"""Normalizes every sample by its own statistics.

    A sample (or a position of a sequence) by itself has m features, which go through the same four steps as the values
    of a channel in batch normalization; but here every feature i has a scale and a shift of its own:

    .. math::
        \mu = \frac{1}{m} \sum_i x_i, \quad
        \sigma^2 = \frac{1}{m} \sum_i (x_i - \mu)^2, \quad
        \hat x_i = \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}}, \quad
        y_i = \gamma_i \, \hat x_i + \beta_i

    Scale and shift are shared by all samples n, so their gradients are sums over samples:

    .. math::
        \frac{\partial L}{\partial \beta_i} = \sum_n \frac{\partial L}{\partial y_{ni}}, \quad
        \frac{\partial L}{\partial \gamma_i} = \sum_n \frac{\partial L}{\partial y_{ni}} \, \hat x_{ni}, \quad
        \frac{\partial L}{\partial \hat x_i} = \frac{\partial L}{\partial y_i} \, \gamma_i

    The statistics are shared by the features of a sample, so theirs are sums over features. The variance goes into
    every x̂_i; the mean goes into every x̂_i and into the variance, the latter with a sum of deviations, which is zero:

    .. math::
        \frac{\partial L}{\partial \sigma^2} &= \sum_i \frac{\partial L}{\partial \hat x_i} \, (x_i - \mu)
        \left(-\frac{1}{2}\right) (\sigma^2 + \epsilon)^{-3/2} \\
        \frac{\partial L}{\partial \mu} &= -\sum_i \frac{\partial L}{\partial \hat x_i}
        \frac{1}{\sqrt{\sigma^2 + \epsilon}}
        - \frac{\partial L}{\partial \sigma^2} \, \frac{2}{m} \sum_i (x_i - \mu)

    An input goes into its own x̂_i, into the variance, and into the mean:

    .. math::
        \frac{\partial L}{\partial x_i} =
        \frac{\partial L}{\partial \hat x_i} \frac{1}{\sqrt{\sigma^2 + \epsilon}}
        + \frac{\partial L}{\partial \sigma^2} \, \frac{2 \, (x_i - \mu)}{m}
        + \frac{\partial L}{\partial \mu} \, \frac{1}{m}
    """

    @override
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.eps = eps
        mean, variance = _sample_statistics(inputs, weight)
        normalized = (inputs - mean) / torch.sqrt(variance + eps)
        return weight * normalized + bias

    @override
    @staticmethod
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        dims = _normalized_dims(inputs, weight)
        count = weight.numel()
        # Computed once more from the inputs, so that autograd sees how they depend on them when it differentiates
        # these lines again for a second derivative.
        mean, variance = _sample_statistics(inputs, weight)
        deviation = inputs - mean
        std = torch.sqrt(variance + ctx.eps)
        normalized = deviation / std

        grad_bias = grad_outputs.sum_to_size(weight.shape)
        grad_weight = (grad_outputs * normalized).sum_to_size(weight.shape)
        grad_normalized = grad_outputs * weight
        grad_variance = (grad_normalized * deviation * -0.5 * std**-3).sum(dims, keepdim=True)
        grad_mean = -(grad_normalized / std).sum(dims, keepdim=True) - grad_variance * 2 / count * deviation.sum(
            dims, keepdim=True
        )
        grad_inputs = grad_normalized / std + grad_variance * 2 * deviation / count + grad_mean / count
        return grad_inputs, grad_weight, grad_bias, None


def layer_norm(
    inputs: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> Tensor:
    r"""Layer normalization, as :func:`torch.nn.functional.layer_norm` computes it.

    .. math::
        y_i = \gamma_i \, \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta_i, \quad
        \mu = \frac{1}{m} \sum_i x_i, \quad \sigma^2 = \frac{1}{m} \sum_i (x_i - \mu)^2

    It does the same in training and in evaluation: samples share nothing but γ and β.

    Args:
        inputs: Inputs x, (..., *normalized_shape).
        normalized_shape: Sizes of the last dimensions, over which each sample is normalized.
        weight: Scale γ, of the shape ``normalized_shape``; None for 1.
        bias: Shift β, of the shape ``normalized_shape``; None for 0.
        eps: Number ε added to the variance, at least 0.

    Returns:
        A tensor of the inputs' shape, twice differentiable in inputs, weight and bias.

    Raises:
        SettingError: If a shape is wrong or ``eps`` is out of range.

    Reference:
        Jimmy Lei Ba, Jamie Ryan Kiros, Geoffrey E. Hinton: Layer Normalization, 2016, arXiv:1607.06450.

    >>> layer_norm(torch.tensor([[1.0, 3.0], [10.0, 30.0]]), (2,), eps=0.0)
    tensor([[-1.,  1.],
            [-1.,  1.]])
    """
    check_range("eps", eps, low=0)
    check_trailing_shape(inputs, normalized_shape)
    check_shape("weight", weight, normalized_shape)
    check_shape("bias", bias, normalized_shape)
    scale = inputs.new_ones(tuple(normalized_shape)) if weight is None else weight
    shift = inputs.new_zeros(tuple(normalized_shape)) if bias is None else bias
    outputs: Tensor = LayerNormFunction.apply(inputs, scale, shift, eps)
    return outputs


def _sample_statistics(inputs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean and the biased variance of every sample, (..., 1)."""
    dims = _normalized_dims(inputs, weight)
    mean = inputs.mean(dims, keepdim=True)
    return mean, (inputs - mean).square().mean(dims, keepdim=True)


def _normalized_dims(inputs: Tensor, weight: Tensor) -> list[int]:
    return list(range(inputs.ndim - weight.ndim, inputs.ndim))
