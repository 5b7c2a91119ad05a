r"""Penalties on activations and predicted distributions. They need a graph."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from typing_extensions import override

from lightning_reg.functional.autograd import is_traced_or_transformed
from lightning_reg.settings import SettingError

__all__ = [
    "activity_penalty",
    "confidence_penalty",
    "decorrelation_penalty",
    "entropy",
    "jensen_shannon_divergence",
    "max_logit_penalty",
    "normalized_logits",
    "symmetric_divergence",
    "temporal_activity_penalty",
    "z_loss",
]


def activity_penalty(activations: Tensor, *, l1: float = 0.0, l2: float = 0.0) -> Tensor:
    r"""The mean absolute activation and the mean squared one, each times its strength.

    .. math:: P(a) = \frac{1}{n} \sum_i \left( \lambda_1 |a_i| + \lambda_2 a_i^2 \right)

    Complex activations count by their absolute values. With L2 on the output of a recurrent layer it is activation
    regularization (AR).

    Args:
        activations: Activations of any shape.
        l1: Strength λ₁ of the absolute activation, at least 0.
        l2: Strength λ₂ of the squared activation, at least 0.

    Returns:
        A scalar tensor, at least in float32; 0 where there are no activations.

    Reference:
        Stephen Merity, Bryan McCann, Richard Socher: Revisiting Activation Regularization for Language RNNs, 2017,
        arXiv:1708.01009.

    >>> activity_penalty(torch.tensor([1.0, -3.0]), l1=0.5, l2=0.1)
    tensor(1.5000)
    """
    values = _at_least_float32(activations)
    if not values.numel():
        return _nothing(values)
    if not is_traced_or_transformed():
        penalty: Tensor = _Activity.apply(values, l1, l2)
        return penalty
    return l1 * values.abs().mean() + l2 * _squares(values).mean()


class _Activity(Function):
    """Computes the penalty in one read of the activations, and its gradient in one pass over them."""

    @staticmethod
    @override
    def forward(ctx: Any, values: Tensor, l1: float, l2: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.l1, ctx.l2 = l1, l2
        penalty = values.new_zeros((), dtype=values.dtype.to_real())
        if l1:
            penalty = torch.add(penalty, torch.linalg.vector_norm(values, 1), alpha=l1 / values.numel())
        if l2:
            penalty = torch.add(penalty, torch.linalg.vector_norm(values).square(), alpha=l2 / values.numel())
        return penalty

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (values,) = ctx.saved_tensors
        share = gradient / values.numel()
        if not ctx.l1:
            return values * (share * (2 * ctx.l2)), None, None
        if not ctx.l2:
            return values.sgn() * (share * ctx.l1), None, None
        return torch.addcmul(values.sgn() * (share * ctx.l1), values, share * (2 * ctx.l2)), None, None


def temporal_activity_penalty(activations: Tensor, strength: float, *, time_dim: int = 1) -> Tensor:
    r"""The mean squared change of activations from one time step to the next, times the strength (TAR).

    .. math:: P(h) = \lambda \operatorname{mean}_t (h_{t+1} - h_t)^2

    Args:
        activations: Tensor with a time dimension.
        strength: Strength λ, at least 0.
        time_dim: Index of the time dimension.

    Returns:
        A scalar tensor, at least in float32; 0 where there is a single time step, or no activations.

    Raises:
        SettingError: If ``time_dim`` isn't a dimension of the activations.

    Reference:
        Stephen Merity, Bryan McCann, Richard Socher: Revisiting Activation Regularization for Language RNNs, 2017,
        arXiv:1708.01009.

    >>> temporal_activity_penalty(torch.tensor([[1.0, 2.0, 4.0]]), 1.0)
    tensor(2.5000)
    """
    if not -activations.ndim <= time_dim < activations.ndim:
        raise SettingError(
            f"time_dim must be a dimension of the activations {tuple(activations.shape)}, not {time_dim}"
        )
    if activations.shape[time_dim] < 2 or not activations.numel():
        return _nothing(_at_least_float32(activations))
    return strength * _squares(_at_least_float32(activations).diff(dim=time_dim)).mean()


def decorrelation_penalty(activations: Tensor, strength: float) -> Tensor:
    r"""The squared covariances between features over a batch, times the strength (DeCov).

    .. math:: P = \frac{\lambda}{2} \left( \| C \|_F^2 - \| \operatorname{diag} C \|^2 \right), \qquad
        C = \frac{1}{N} \sum_n (h_n - \bar h)(h_n - \bar h)^\mathsf{H}

    Args:
        activations: (N, D); for (N, T, D) each time step, for (N, C, H, W) each position counts as a sample.
        strength: Strength λ, at least 0.

    Returns:
        A scalar tensor, at least in float32; 0 where no two features covary, or there are no activations.

    Raises:
        SettingError: If there are fewer than two dimensions.

    Reference:
        Michael Cogswell, Faruk Ahmed, Ross Girshick, Larry Zitnick, Dhruv Batra: Reducing Overfitting in Deep Networks
        by Decorrelating Representations, ICLR 2016, arXiv:1511.06068.

    >>> decorrelation_penalty(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]), 1.0)
    tensor(4.)
    """
    if activations.ndim < 2:
        raise SettingError(f"activations must have samples and features, but have shape {tuple(activations.shape)}")
    values = _at_least_float32(activations)
    if not values.numel():
        return _nothing(values)
    rows = (values.movedim(1, -1) if values.ndim > 3 else values).flatten(0, -2)  # (N, D)
    rows = rows - rows.mean(0)
    # The smaller of two matrices with the same norm.
    products = rows @ rows.mH if len(rows) < rows.shape[1] else rows.mH @ rows
    whole = _squares(products).sum()
    own = _squares(rows).sum(0).square().sum()
    return strength / 2 * (whole - own) / len(rows) ** 2


def entropy(logits: Tensor, *, counted: Tensor | None = None) -> Tensor:
    r"""The mean entropy of the predicted distributions.

    .. math:: H = -\frac{1}{N} \sum_n \sum_c p_{nc} \ln p_{nc}, \qquad p = \operatorname{softmax}(\text{logits})

    Args:
        logits: (N, C), (N, C, d₁, ...) or (C,), as ``cross_entropy`` takes them; log-probabilities are logits, too.
        counted: (N,), (N, d₁, ...) or a scalar, bools: mask of the distributions to average over; None for all.

    Returns:
        A scalar tensor, in nats, at least in float32.

    >>> entropy(torch.zeros(1, 2))
    tensor(0.6931)
    """
    log_probabilities = _at_least_float32(logits).log_softmax(dim=1 if logits.ndim > 1 else 0)
    # A class masked with -inf has probability 0 and adds nothing; 0 · -inf would be NaN.
    terms = log_probabilities.exp() * log_probabilities.clamp(min=torch.finfo(log_probabilities.dtype).min)
    return _mean(-terms.sum(dim=1 if logits.ndim > 1 else 0), counted)


def confidence_penalty(logits: Tensor, strength: float, *, counted: Tensor | None = None) -> Tensor:
    r"""The negative entropy of the predicted distributions, times the strength.

    .. math:: P = -\beta H(p)

    Args:
        logits: Logits, as for :func:`entropy`.
        strength: Strength β, at least 0.
        counted: Mask of the distributions, as for :func:`entropy`.

    Returns:
        A scalar tensor, never positive: lowest where predictions are uniform.

    Reference:
        Gabriel Pereyra, George Tucker, Jan Chorowski, Łukasz Kaiser, Geoffrey Hinton: Regularizing Neural Networks by
        Penalizing Confident Output Distributions, 2017, arXiv:1701.06548.

    >>> confidence_penalty(torch.zeros(1, 2), 0.1)
    tensor(-0.0693)
    """
    return -strength * entropy(logits, counted=counted)


def max_logit_penalty(logits: Tensor, strength: float, *, counted: Tensor | None = None) -> Tensor:
    r"""The difference between the largest logit and the mean of all, times the strength (MaxSup).

    .. math:: P = \frac{\lambda}{N} \sum_n \left( \max_c z_{nc} - \frac{1}{C} \sum_c z_{nc} \right)

    It is the same for log-probabilities. A class masked with :math:`-\infty` is left out of the mean.

    Args:
        logits: Logits, as for :func:`entropy`.
        strength: Strength λ, at least 0.
        counted: Mask of the distributions, as for :func:`entropy`.

    Returns:
        A scalar tensor, never negative: lowest where all logits are equal.

    Reference:
        Yuxuan Zhou et al.: MaxSup: Overcoming Representation Collapse in Label Smoothing, 2025, arXiv:2502.15798.

    >>> max_logit_penalty(torch.tensor([[3.0, 1.0, 2.0]]), 0.1)
    tensor(0.1000)
    """
    dim = 1 if logits.ndim > 1 else 0
    values = _at_least_float32(logits)
    possible = values > -torch.inf
    mean = values.where(possible, 0).sum(dim) / possible.sum(dim)
    return strength * _mean(values.amax(dim) - mean, counted)


def z_loss(logits: Tensor, strength: float, *, counted: Tensor | None = None) -> Tensor:
    r"""The squared logarithm of the softmax's denominator, times the strength.

    .. math:: P = \frac{\lambda}{N} \sum_n \left( \ln \sum_c e^{z_{nc}} \right)^2

    Args:
        logits: Logits, as for :func:`entropy`. For log-probabilities the term is 0.
        strength: Strength λ, at least 0.
        counted: Mask of the distributions, as for :func:`entropy`.

    Returns:
        A scalar tensor, never negative: 0 where the exponentials of the logits already sum to 1.

    Reference:
        Aakanksha Chowdhery et al.: PaLM: Scaling Language Modeling with Pathways, 2022, arXiv:2204.02311, section 5.

    >>> z_loss(torch.zeros(1, 2), 1.0)
    tensor(0.4805)
    """
    return strength * _mean(_at_least_float32(logits).logsumexp(1 if logits.ndim > 1 else 0).square(), counted)


def normalized_logits(logits: Tensor, temperature: float) -> Tensor:
    r"""Returns logits scaled to the norm :math:`1 / \tau` (LogitNorm).

    .. math:: \hat{z} = \frac{z}{\tau \, (\| z \| + 10^{-7})}

    Args:
        logits: (N, C), (N, C, ...) or (C), logits z; classes with −∞ don't count toward the norm.
        temperature: Temperature τ, above 0.

    Returns:
        A tensor of the same shape, at least in float32.

    Reference:
        Hongxin Wei, Renchunzi Xie, Hao Cheng, Lei Feng, Bo An, Yixuan Li: Mitigating Neural Network Overconfidence with
        Logit Normalization, ICML 2022, arXiv:2205.09310.

    >>> normalized_logits(torch.tensor([[3.0, -4.0]]), 0.5)
    tensor([[ 1.2000, -1.6000]])
    """
    values = _at_least_float32(logits)
    classes = min(values.ndim - 1, 1)
    lengths: Tensor = torch.linalg.vector_norm(values.masked_fill(values.isneginf(), 0), dim=classes, keepdim=True)
    return values / (temperature * (lengths + 1e-7))


def symmetric_divergence(logits: Tensor, others: Tensor, strength: float, *, counted: Tensor | None = None) -> Tensor:
    r"""The symmetric KL divergence of two predictions of the same samples, times the strength (R-Drop).

    .. math:: P = \frac{\lambda}{N} \sum_n \tfrac{1}{2} \left( KL(p_n \| q_n) + KL(q_n \| p_n) \right)
        = \frac{\lambda}{2N} \sum_n \sum_c (p_{nc} - q_{nc}) (\ln p_{nc} - \ln q_{nc})

    Args:
        logits: Logits of p, as for :func:`entropy`.
        others: Logits of q, likewise.
        strength: Strength λ, at least 0.
        counted: Mask of the distributions, as for :func:`entropy`.

    Returns:
        A scalar tensor, never negative: 0 where both predictions are equal.

    Reference:
        Xiaobo Liang, Lijun Wu, Juntao Li, et al.: R-Drop: Regularized Dropout for Neural Networks, NeurIPS 2021,
        arXiv:2106.14448.

    >>> symmetric_divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]), 1.0)
    tensor(0.)
    """
    dim = 1 if logits.ndim > 1 else 0
    p, q = (_at_least_float32(values).log_softmax(dim) for values in (logits, others))
    # A class masked with -inf in both adds nothing; the difference of two infinities would be NaN.
    p, q = (values.clamp(min=torch.finfo(values.dtype).min) for values in (p, q))
    return strength / 2 * _mean(((p.exp() - q.exp()) * (p - q)).sum(dim), counted)


def jensen_shannon_divergence(views: Sequence[Tensor], strength: float, *, counted: Tensor | None = None) -> Tensor:
    r"""The Jensen-Shannon divergence of predictions for several views of the same samples, times the strength (AugMix).

    .. math:: P = \frac{\lambda}{N} \sum_n \frac{1}{K} \sum_k KL(p_{nk} \| m_n), \qquad
        m_n = \frac{1}{K} \sum_k p_{nk}

    Args:
        views: Logits of each view, as for :func:`entropy`; at least one view.
        strength: Strength λ, at least 0.
        counted: Mask of the distributions, as for :func:`entropy`.

    Returns:
        A scalar tensor, from 0, where all predictions are equal, to λ ln K.

    Reference:
        Dan Hendrycks, Norman Mu, Ekin D. Cubuk, et al.: AugMix: A Simple Data Processing Method to Improve Robustness
        and Uncertainty, ICLR 2020, arXiv:1912.02781.

    >>> jensen_shannon_divergence([torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 100.0]])], 1.0)
    tensor(0.6931)
    """
    values = torch.stack([_at_least_float32(logits) for logits in views])  # (K, N, C, ...)
    dim = 2 if values.ndim > 2 else 1
    logs = values.log_softmax(dim)
    # A class masked with -inf in all adds nothing; the difference of two infinities would be NaN.
    logs = logs.clamp(min=torch.finfo(logs.dtype).min)
    of_mean = logs.logsumexp(0) - math.log(len(views))
    return strength * _mean((logs.exp() * (logs - of_mean)).sum(dim).mean(0), counted)


def _nothing(values: Tensor) -> Tensor:
    """Returns 0 with a graph down to the values, so that they get gradients of 0."""
    return values.abs().sum() * 0


def _squares(values: Tensor) -> Tensor:
    """Returns the squared absolute values, which are real."""
    return torch.view_as_real(values).square().sum(-1) if values.is_complex() else values.square()


def _mean(values: Tensor, counted: Tensor | None) -> Tensor:
    return values.mean() if counted is None else (values * counted).sum() / counted.sum().clamp(min=1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
