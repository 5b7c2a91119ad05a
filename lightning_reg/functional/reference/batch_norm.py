"""Batch normalization: forward, running statistics, evaluation, and backward term by term."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from typing_extensions import override

from lightning_reg.functional.shapes import check_several_values, check_shape, check_with_channels
from lightning_reg.settings import SettingError, check_range

__all__ = ["BatchNormInEvaluation", "BatchNormInTraining", "batch_norm"]


class BatchNormInTraining(Function):
    r"""Normalizes by the statistics of the batch, which depend on the inputs, too.

    Every channel has m values, as many as samples times positions. They go through four steps:

    .. math::
        \mu = \frac{1}{m} \sum_i x_i, \quad
        \sigma^2 = \frac{1}{m} \sum_i (x_i - \mu)^2, \quad
        \hat x_i = \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}}, \quad
        y_i = \gamma \, \hat x_i + \beta

    Backward goes through them from the last to the first. By the chain rule, the gradient of a quantity is the sum over
    everything that it goes into: the gradient there, times the derivative of it. The shift β goes into every output
    with derivative 1, the scale γ with derivative x̂_i, and x̂_i into its own output with derivative γ:

    .. math::
        \frac{\partial L}{\partial \beta} = \sum_i \frac{\partial L}{\partial y_i}, \quad
        \frac{\partial L}{\partial \gamma} = \sum_i \frac{\partial L}{\partial y_i} \, \hat x_i, \quad
        \frac{\partial L}{\partial \hat x_i} = \frac{\partial L}{\partial y_i} \, \gamma

    The variance goes into every x̂_i, by the power −1/2:

    .. math::
        \frac{\partial L}{\partial \sigma^2} = \sum_i \frac{\partial L}{\partial \hat x_i} \, (x_i - \mu)
        \left(-\frac{1}{2}\right) (\sigma^2 + \epsilon)^{-3/2}

    The mean goes into every x̂_i, and into the variance. The second sum is zero, because deviations from a mean cancel:

    .. math::
        \frac{\partial L}{\partial \mu} = -\sum_i \frac{\partial L}{\partial \hat x_i}
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
        mean, variance = _batch_statistics(inputs)
        normalized = (inputs - mean) / torch.sqrt(variance + eps)
        return _per_channel(weight, inputs) * normalized + _per_channel(bias, inputs)

    @override
    @staticmethod
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        dims = _all_but_channels(inputs)
        count = inputs.numel() / inputs.shape[1]
        # Computed once more from the inputs, so that autograd sees how they depend on them when it differentiates
        # these lines again for a second derivative.
        mean, variance = _batch_statistics(inputs)
        deviation = inputs - mean
        std = torch.sqrt(variance + ctx.eps)
        normalized = deviation / std

        grad_bias = grad_outputs.sum(dims)
        grad_weight = (grad_outputs * normalized).sum(dims)
        grad_normalized = grad_outputs * _per_channel(weight, inputs)
        grad_variance = (grad_normalized * deviation * -0.5 * std**-3).sum(dims, keepdim=True)
        grad_mean = -(grad_normalized / std).sum(dims, keepdim=True) - grad_variance * 2 / count * deviation.sum(
            dims, keepdim=True
        )
        grad_inputs = grad_normalized / std + grad_variance * 2 * deviation / count + grad_mean / count
        return grad_inputs, grad_weight, grad_bias, None


class BatchNormInEvaluation(Function):
    r"""Normalizes by running statistics, which are constants.

    .. math::
        \hat x_i = \frac{x_i - \mu_r}{\sqrt{\sigma^2_r + \epsilon}}, \quad y_i = \gamma \, \hat x_i + \beta

    So an input goes into its own output alone:

    .. math::
        \frac{\partial L}{\partial \beta} = \sum_i \frac{\partial L}{\partial y_i}, \quad
        \frac{\partial L}{\partial \gamma} = \sum_i \frac{\partial L}{\partial y_i} \, \hat x_i, \quad
        \frac{\partial L}{\partial \hat x_i} = \frac{\partial L}{\partial y_i} \, \gamma, \quad
        \frac{\partial L}{\partial x_i} = \frac{\partial L}{\partial \hat x_i} \frac{1}{\sqrt{\sigma^2_r + \epsilon}}
    """

    @override
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, mean, variance)
        ctx.eps = eps
        normalized = (inputs - _per_channel(mean, inputs)) / torch.sqrt(_per_channel(variance, inputs) + eps)
        return _per_channel(weight, inputs) * normalized + _per_channel(bias, inputs)

    @override
    @staticmethod
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, variance = ctx.saved_tensors
        dims = _all_but_channels(inputs)
        std = torch.sqrt(_per_channel(variance, inputs) + ctx.eps)
        normalized = (inputs - _per_channel(mean, inputs)) / std

        grad_bias = grad_outputs.sum(dims)
        grad_weight = (grad_outputs * normalized).sum(dims)
        grad_normalized = grad_outputs * _per_channel(weight, inputs)
        grad_inputs = grad_normalized / std
        return grad_inputs, grad_weight, grad_bias, None, None, None


def batch_norm(
    inputs: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    r"""Batch normalization, as :func:`torch.nn.functional.batch_norm` computes it.

    .. math::
        y = \gamma \, \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    In training, μ and σ² are the mean and the variance of each channel over the batch and all positions, and running
    statistics are updated with the momentum α:

    .. math::
        \mu_r \leftarrow (1 - \alpha) \, \mu_r + \alpha \, \mu, \quad
        \sigma^2_r \leftarrow (1 - \alpha) \, \sigma^2_r + \alpha \, \frac{m}{m - 1} \, \sigma^2

    Inputs are normalized by the biased variance, with 1/m; the running variance is updated with the unbiased one, with
    1/(m − 1), as in torch. In evaluation, μ and σ² are the running statistics.

    Args:
        inputs: Inputs x, (N, C), (N, C, L) or (N, C, H, W), or with any number of further dimensions.
        running_mean: (C,), running mean, updated in place in training; None to keep none.
        running_var: (C,), running variance, likewise.
        weight: Scale γ, (C,); None for 1.
        bias: Shift β, (C,); None for 0.
        training: Whether to normalize by the statistics of the batch, and to update the running ones.
        momentum: Momentum α, in [0, 1].
        eps: Number ε added to the variance, at least 0.

    Returns:
        A tensor of the inputs' shape, twice differentiable in inputs, weight and bias.

    Raises:
        SettingError: If a shape is wrong, a channel has a single value in training, running statistics are missing in
            evaluation, or a number is out of range.

    Reference:
        Sergey Ioffe, Christian Szegedy: Batch Normalization: Accelerating Deep Network Training by Reducing Internal
        Covariate Shift, ICML 2015, arXiv:1502.03167.

    >>> running_mean, running_var = torch.zeros(1), torch.ones(1)
    >>> batch_norm(torch.tensor([[1.0], [3.0]]), running_mean, running_var, training=True, eps=0.0)
    tensor([[-1.],
            [ 1.]])
    >>> running_mean, running_var  # 0.1 times the mean 2; 0.9 + 0.1 times the unbiased variance 2
    (tensor([0.2000]), tensor([1.1000]))
    """
    check_range("momentum", momentum, low=0, high=1)
    check_range("eps", eps, low=0)
    check_with_channels(inputs)
    channels = (inputs.shape[1],)
    for name, tensor in (("running_mean", running_mean), ("running_var", running_var)):
        check_shape(name, tensor, channels)
        if tensor is None and not training:
            raise SettingError(f"{name} must be given in evaluation, but is None")
    check_shape("weight", weight, channels)
    check_shape("bias", bias, channels)
    scale = inputs.new_ones(channels) if weight is None else weight
    shift = inputs.new_zeros(channels) if bias is None else bias
    outputs: Tensor
    if not training:
        outputs = BatchNormInEvaluation.apply(inputs, scale, shift, running_mean, running_var, eps)
        return outputs
    check_several_values(inputs)
    _follow(inputs, running_mean, running_var, momentum)
    outputs = BatchNormInTraining.apply(inputs, scale, shift, eps)
    return outputs


@torch.no_grad()
def _follow(inputs: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float) -> None:
    mean, variance = _batch_statistics(inputs)
    count = inputs.numel() / inputs.shape[1]
    unbiased = variance * count / (count - 1)
    if running_mean is not None:
        running_mean.copy_((1 - momentum) * running_mean + momentum * mean.flatten())
    if running_var is not None:
        running_var.copy_((1 - momentum) * running_var + momentum * unbiased.flatten())


def _batch_statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean and the biased variance of every channel, (1, C, 1, ...)."""
    dims = _all_but_channels(inputs)
    mean = inputs.mean(dims, keepdim=True)
    return mean, (inputs - mean).square().mean(dims, keepdim=True)


def _all_but_channels(inputs: Tensor) -> list[int]:
    return [dim for dim in range(inputs.ndim) if dim != 1]


def _per_channel(values: Tensor, inputs: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (inputs.ndim - 2))  # (C,) to (1, C, 1, ...)
