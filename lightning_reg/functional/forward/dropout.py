r"""Dropout, plain and Gaussian, and Mixout.

All preserve the expectation: survivors are divided by their probability of survival.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from typing_extensions import override

from lightning_reg.functional.autograd import is_traced_or_transformed
from lightning_reg.functional.bernoulli import is_faster
from lightning_reg.functional.forward.noise import NoiseStream, draw

__all__ = [
    "dropout",
    "gaussian_dropout",
    "keep_and_rescale",
    "mask_shape",
    "mixout",
]


def dropout(inputs: Tensor, p: float, stream: NoiseStream | None = None) -> Tensor:
    """Drops every unit independently, see :func:`keep_and_rescale`, with the fastest way of drawing.

    On the CPU one random number decides four units. Few units, compiled code and other devices use torch's own
    dropout, which draws other masks from the same distribution.

    Args:
        inputs: Inputs of any shape.
        p: Probability that a unit is dropped, in [0, 1].
        stream: Source of random numbers; torch's global stream where None.

    Reference:
        Nitish Srivastava et al.: Dropout: A Simple Way to Prevent Neural Networks from Overfitting, JMLR 2014.

    >>> dropout(torch.ones(10_000), 0.5).unique()
    tensor([0., 2.])
    """
    if stream is not None and stream.serves(inputs):
        return keep_and_rescale(inputs, stream.draw("bits", inputs, inputs.shape, 1 - p), p)
    if p == 1:
        return torch.where(torch.zeros_like(inputs, dtype=torch.bool), inputs, 0.0)
    if _is_left_to_torch(inputs, p):
        return torch.dropout(inputs, p, True)
    return keep_and_rescale(inputs, draw("bits", inputs.detach(), inputs.shape, 1 - p), p)


def mixout(weight: Tensor, start: Tensor, p: float, stream: NoiseStream | None = None) -> Tensor:
    r"""Swaps weights for others at random, and moves the rest so that the expectation is preserved.

    .. math::
        \tilde{w}_i = \frac{m_i w^0_i + (1 - m_i) w_i - p \, w^0_i}{1 - p}
        = w^0_i + \frac{1 - m_i}{1 - p} (w_i - w^0_i), \quad m_i \sim \mathrm{Bernoulli}(p)

    That is dropout of the difference w − w⁰; with w⁰ = 0 it is dropout of the weights.

    Args:
        weight: Weights w, of any shape.
        start: Weights w⁰ to swap for, of the same shape.
        p: Probability that a weight is swapped, in [0, 1].
        stream: Source of random numbers; torch's global stream where None.

    Reference:
        Cheolhyoung Lee, Kyunghyun Cho, Wanmo Kang: Mixout: Effective Regularization to Finetune Large-scale Pretrained
        Language Models, ICLR 2020, arXiv:1909.11299.

    >>> mixout(torch.full((10_000,), 3.0), torch.ones(10_000), 0.5).unique()
    tensor([1., 5.])
    """
    return start + dropout(weight - start, p, stream)


def _is_left_to_torch(inputs: Tensor, p: float) -> bool:
    if is_traced_or_transformed():
        return True
    # In 16 bits torch's 1 / (1 - p) would be rounded, always in the same direction.
    if not is_faster(inputs.numel(), p) and inputs.dtype not in (torch.bfloat16, torch.float16):
        return True
    is_plain = type(inputs) in (Tensor, nn.Parameter) and inputs.layout == torch.strided and inputs.is_floating_point()
    return not is_plain or inputs.device.type != "cpu"


def keep_and_rescale(inputs: Tensor, keep: Tensor, p: float) -> Tensor:
    r"""Applies a mask and rescales the rest.

    .. math:: y_i = \frac{m_i \, x_i}{1 - p}, \quad m_i \sim \mathrm{Bernoulli}(1 - p)

    Args:
        inputs: Inputs x, of any shape.
        keep: Mask m, 1 or 0, of a shape that broadcasts to the inputs'. It may be overwritten, to save a copy. If it is
            int16, it has the inputs' shape, and only it is saved for the backward pass.
        p: Probability of a 0 in the mask, in [0, 1]; at 1 the result is 0, whatever the inputs are.

    Reference:
        Nitish Srivastava et al.: Dropout: A Simple Way to Prevent Neural Networks from Overfitting, JMLR 2014.

    >>> keep_and_rescale(torch.ones(3), torch.tensor([1.0, 0.0, 1.0]), 0.5)
    tensor([2., 0., 2.])
    """
    if p == 1:
        return torch.where(keep > 0, inputs, 0.0)
    if keep.dtype == torch.int16:
        return _kept(inputs, keep, 1 - p)
    if not keep.is_floating_point() or torch.finfo(keep.dtype).bits < 32:
        return (inputs * keep) / (1 - p)  # 1 / (1 - p) would be rounded, always in the same direction
    return inputs * keep.div_(1 - p)


_FEW = 2**16  # below it, a mask in the inputs' precision costs less than a custom function


class _Kept(Function):
    """Computes inputs · keep / survival in few passes, and saves two bytes per unit for the backward pass.

    Multiplication of floats by integers is a slow path in torch.
    """

    @staticmethod
    @override
    def forward(ctx: Any, inputs: Tensor, keep: Tensor, survival: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.save_for_forward(keep)
        ctx.survival = survival
        return _times(inputs, keep, survival)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # Without a graph, which costs as much as some thousand units.
        times = _kept if torch.is_grad_enabled() else _times
        return times(gradient, ctx.saved_tensors[0], ctx.survival), None, None

    @staticmethod
    @override
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _kept(tangent, ctx.saved_tensors[0], ctx.survival)


def _times(inputs: Tensor, keep: Tensor, survival: float) -> Tensor:
    # A batched gradient, as from autograd.grad(is_grads_batched=True), can't be written into an unbatched tensor.
    if is_traced_or_transformed() or torch._C._functorch.is_legacy_batchedtensor(inputs):
        return inputs * keep / survival
    kept = keep.to(inputs.dtype)
    if torch.finfo(inputs.dtype).bits < 32:
        return kept.mul_(inputs).div_(survival)  # rounded once, as the quotient is
    return torch.addcmul(kept.new_zeros(()), kept, inputs, value=1 / survival, out=kept)


def _kept(inputs: Tensor, keep: Tensor, survival: float) -> Tensor:
    if is_traced_or_transformed():
        return inputs * keep / survival
    if inputs.numel() < _FEW and torch.finfo(inputs.dtype).bits >= 32:
        return inputs * keep.to(inputs.dtype).mul_(1 / survival)
    kept: Tensor = _Kept.apply(inputs, keep, survival)
    return kept


def mask_shape(shape: Sequence[int], shared_dims: Sequence[int]) -> list[int]:
    """Returns the shape of a mask that is shared along some dimensions.

    Args:
        shape: Shape of the inputs.
        shared_dims: Dimensions along which the mask is shared.

    >>> mask_shape((8, 16, 4, 4), (2, 3))
    [8, 16, 1, 1]
    """
    shared = {dim % len(shape) for dim in shared_dims}
    return [1 if dim in shared else size for dim, size in enumerate(shape)]


def gaussian_dropout(inputs: Tensor, noise: Tensor, p: float) -> Tensor:
    r"""Multiplies by Gaussian noise with the mean and variance of dropout's.

    .. math:: y_i = x_i \left(1 + \sqrt{\tfrac{p}{1 - p}} \, \varepsilon_i\right), \quad \varepsilon_i \sim N(0, 1)

    Args:
        inputs: Inputs x, of any shape.
        noise: Standard normal noise ε, of the same shape.
        p: Probability of the equivalent dropout, in [0, 1).

    Reference:
        Nitish Srivastava et al.: Dropout: A Simple Way to Prevent Neural Networks from Overfitting, JMLR 2014,
        section 10.

    >>> gaussian_dropout(torch.ones(2), torch.tensor([0.0, 1.0]), 0.5)
    tensor([1., 2.])
    """
    return inputs * torch.add(1.0, noise, alpha=math.sqrt(p / (1 - p)))
