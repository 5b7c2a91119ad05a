r"""Dropout and its relatives, given the random numbers: what is kept, or by how much it is disturbed.

All keep the expectation: what survives is divided by the probability with which it does.
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
from lightning_reg.functional.noise import NoiseStream, draw

__all__ = [
    "concrete_mask",
    "concrete_regularization",
    "dropout",
    "embedding_noise",
    "gaussian_dropout",
    "keep_and_rescale",
    "mask_shape",
]


def dropout(inputs: Tensor, p: float, stream: NoiseStream | None = None) -> Tensor:
    """Drops every unit by itself, see :func:`keep_and_rescale`, and draws in the fastest way.

    On the CPU one random number decides four units. Few units, compiled code and other devices have torch's own
    dropout, which makes other masks of the same distribution.

    Args:
        inputs: Inputs of any shape.
        p: Probability that a unit is dropped, in [0, 1].
        stream: Where random numbers come from; torch's global stream where None.

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


def _is_left_to_torch(inputs: Tensor, p: float) -> bool:
    if torch.compiler.is_compiling():
        return True
    # In 16 bits torch's 1 / (1 - p) would be rounded, always to the same side.
    if not is_faster(inputs.numel(), p) and inputs.dtype not in (torch.bfloat16, torch.float16):
        return True
    is_plain = type(inputs) in (Tensor, nn.Parameter) and inputs.layout == torch.strided and inputs.is_floating_point()
    return not is_plain or inputs.device.type != "cpu" or is_traced_or_transformed()


def keep_and_rescale(inputs: Tensor, keep: Tensor, p: float) -> Tensor:
    r"""Drops what isn't kept and rescales the rest.

    .. math:: y_i = \frac{m_i \, x_i}{1 - p}, \quad m_i \sim \mathrm{Bernoulli}(1 - p)

    Args:
        inputs: x, of any shape.
        keep: m, 1 or 0, of a shape that broadcasts to the inputs'. It may be written to, so that no copy is needed.
            Of int16 it has the inputs' shape, and is all that is kept for the backward pass.
        p: Probability with which a zero was drawn, in [0, 1]; at 1 there are zeros, whatever the inputs are.

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
        return (inputs * keep) / (1 - p)  # 1 / (1 - p) would be rounded, always to the same side
    return inputs * keep.div_(1 - p)


_FEW = 2**16  # below it, a mask of the inputs' own precision costs less than a function of ours


class _Kept(Function):
    """Inputs · keep / survival, linear in the inputs; in few passes, from two bytes a unit.

    Multiplication of floats by whole numbers is a slow path of torch's.
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
        # Without a graph of its own, which takes as long as some thousand units.
        times = _kept if torch.is_grad_enabled() else _times
        return times(gradient, ctx.saved_tensors[0], ctx.survival), None, None

    @staticmethod
    @override
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _kept(tangent, ctx.saved_tensors[0], ctx.survival)


def _times(inputs: Tensor, keep: Tensor, survival: float) -> Tensor:
    # A batch of gradients, as autograd.grad(is_grads_batched=True) makes, can't be written into what isn't one.
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
    """Returns the shape of a mask that is the same along some dimensions.

    Args:
        shape: Shape of the inputs.
        shared_dims: Dimensions along which everything is dropped together.

    >>> mask_shape((8, 16, 4, 4), (2, 3))
    [8, 16, 1, 1]
    """
    shared = {dim % len(shape) for dim in shared_dims}
    return [1 if dim in shared else size for dim, size in enumerate(shape)]


def gaussian_dropout(inputs: Tensor, noise: Tensor, p: float) -> Tensor:
    r"""Multiplies by Gaussian noise of the mean and the variance that dropout's has.

    .. math:: y_i = x_i \left(1 + \sqrt{\tfrac{p}{1 - p}} \, \varepsilon_i\right), \quad \varepsilon_i \sim N(0, 1)

    Args:
        inputs: x, of any shape.
        noise: ε, of the same shape.
        p: Probability of the dropout that it is like, in [0, 1).

    Reference:
        Nitish Srivastava et al.: Dropout: A Simple Way to Prevent Neural Networks from Overfitting, JMLR 2014,
        section 10.

    >>> gaussian_dropout(torch.ones(2), torch.tensor([0.0, 1.0]), 0.5)
    tensor([1., 2.])
    """
    return inputs * torch.add(1.0, noise, alpha=math.sqrt(p / (1 - p)))


def concrete_mask(uniform: Tensor, logit: Tensor, temperature: float) -> Tensor:
    r"""Returns a mask that is nearly 0 or 1, through which the rate of dropping has a gradient.

    .. math::
        m = 1 - \operatorname{sigmoid}\left(\tfrac{1}{t} \left(\operatorname{logit} p + \operatorname{logit} u
        \right)\right)

    Args:
        uniform: u on [0, 1), of any shape.
        logit: logit p, (): of the rate p.
        temperature: t > 0; the smaller, the nearer to 0 and 1.

    Reference:
        Yarin Gal, Jiri Hron, Alex Kendall: Concrete Dropout, NeurIPS 2017, arXiv:1705.07832.

    >>> concrete_mask(torch.tensor([0.0, 0.999]), torch.tensor(0.0), 0.1).round()
    tensor([1., 0.])
    """
    eps = torch.finfo(uniform.dtype).eps
    # u = 0 is a number that generators return; its logit isn't one.
    odds = torch.logit(uniform, eps=eps)
    return torch.sigmoid(-(logit + odds) / temperature)


def concrete_regularization(
    weight: Tensor, logit: Tensor, num_inputs: int, *, length_scale: float, num_samples: int
) -> Tensor:
    r"""What a learned rate of dropping adds to a mean negative log likelihood: its part of the bound's KL divergence.

    .. math::
        \frac{1}{N} \left(\frac{l^2}{2 \, (1 - p)} \lVert W \rVert^2 - K \, H(p)\right), \quad
        H(p) = -p \log p - (1 - p) \log (1 - p)

    Without the entropy H the rate would fall to 0, without data it would rise to where the two are in balance.

    Args:
        weight: W, of the layer whose inputs are dropped.
        logit: logit p, ().
        num_inputs: K, how many units are dropped by themselves.
        length_scale: l ≥ 0 of the prior over weights; the greater, the smoother the functions.
        num_samples: N, how many samples there are to train on.

    Returns:
        A number, () in the precision of the weights.

    Reference:
        Yarin Gal, Jiri Hron, Alex Kendall: Concrete Dropout, NeurIPS 2017, arXiv:1705.07832. The paper's M, of a layer
        that doesn't rescale what survives, is W / (1 − p).

    >>> term = concrete_regularization(torch.zeros(3, 4), torch.tensor(0.0), 4, length_scale=0.01, num_samples=4)
    >>> round(term.item(), 4)  # -log 2
    -0.6931
    """
    p = torch.sigmoid(logit)
    log_p, log_keep = torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit)
    entropy = -(p * log_p + (1 - p) * log_keep)
    weight_term = length_scale**2 / 2 * weight.square().sum() / (1 - p)
    return (weight_term - num_inputs * entropy) / num_samples


def embedding_noise(embeddings: Tensor, noise: Tensor, alpha: float, *, lengths: Tensor | None = None) -> Tensor:
    r"""Adds uniform noise to token embeddings, whose expected length doesn't depend on how many or how wide they are.

    .. math:: y = e + \frac{\alpha}{\sqrt{L d}} (2u - 1), \quad u \sim \mathrm{Uniform}(0, 1)

    Args:
        embeddings: e, (..., L, d).
        noise: u, of the same shape.
        alpha: α, at least 0.
        lengths: (...), how many of a sample's tokens aren't padding; the size L of the tensor where None.

    Reference:
        Neel Jain et al.: NEFTune: Noisy Embeddings Improve Instruction Finetuning, ICLR 2024, arXiv:2310.05914.

    >>> embedding_noise(torch.zeros(1, 4), torch.ones(1, 4), 5.0)
    tensor([[2.5000, 2.5000, 2.5000, 2.5000]])
    """
    tokens, width = embeddings.shape[-2:]
    if lengths is None:
        return embeddings + (2 * noise - 1) * (alpha / math.sqrt(tokens * width))
    scale = alpha / (lengths.clamp(min=1) * width).sqrt()  # a sample of padding alone
    return embeddings + (2 * noise - 1) * scale.to(embeddings.dtype)[..., None, None]
