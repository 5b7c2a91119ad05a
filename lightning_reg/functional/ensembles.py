r"""Predictions of several networks as one, and the cycles in which one training visits them."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cosine_factor", "cycle_ends", "log_mean_sigmoid", "log_mean_softmax"]


def log_mean_softmax(logits: Sequence[Tensor], dim: int = 1) -> Tensor:
    r"""Returns logits of the mean of several networks' probabilities.

    .. math:: \log \frac{1}{K} \sum_k \operatorname{softmax}(z_k)

    They are log probabilities: their softmax is the mean, and their cross entropy that of the mean.

    Args:
        logits: K tensors z (N, C, ...); of 16 bits they are read in 32.
        dim: Dimension of the classes.

    Returns:
        (N, C, ...), in the first one's precision.

    >>> one, other = torch.tensor([[9.0, 1.0]]).log(), torch.tensor([[5.0, 5.0]]).log()
    >>> log_mean_softmax([one, other]).exp()
    tensor([[0.7000, 0.3000]])
    """
    logs = torch.stack([F.log_softmax(_precise(entry), dim) for entry in logits])
    return (logs.logsumexp(0) - math.log(len(logs))).to(logits[0].dtype)


def log_mean_sigmoid(logits: Sequence[Tensor]) -> Tensor:
    r"""Returns logits of the mean of several networks' probabilities of labels, each by itself.

    .. math:: \log \bar p - \log(1 - \bar p), \quad \bar p = \frac{1}{K} \sum_k \sigma(z_k)

    Args:
        logits: K tensors z of one shape; of 16 bits they are read in 32.

    Returns:
        Of the same shape, in the first one's precision.

    >>> log_mean_sigmoid([torch.tensor([0.0]), torch.tensor([torch.inf])]).sigmoid()
    tensor([0.7500])
    """
    stacked = torch.stack([_precise(entry) for entry in logits])
    odds = F.logsigmoid(stacked).logsumexp(0) - F.logsigmoid(-stacked).logsumexp(0)
    return odds.to(logits[0].dtype)


def _precise(logits: Tensor) -> Tensor:
    return logits.float() if torch.finfo(logits.dtype).bits < 32 else logits


def cycle_ends(steps: int, cycles: int, growth: float = 1.0) -> list[int]:
    r"""Returns after how many steps each cycle ends; the last one ends with training.

    .. math:: e_i = \operatorname{round}\left(T \sum_{j \le i} g^j \big/ \sum_{j < M} g^j\right)

    Args:
        steps: T, of the whole training.
        cycles: M.
        growth: g, how many times as long as the one before a cycle is.

    >>> cycle_ends(100, 3), cycle_ends(105, 3, growth=2)
    ([33, 67, 100], [15, 45, 105])
    """
    lengths = [growth**index for index in range(cycles)]
    total = sum(lengths)
    return [round(steps * sum(lengths[: index + 1]) / total) for index in range(cycles)]


def cosine_factor(step: int, length: int, floor: float = 0.0) -> float:
    r"""Returns what a cycle multiplies the learning rate by: it begins at 1 and falls along half a wave.

    .. math:: f + (1 - f) (1 + \cos(\pi t / c)) / 2

    Args:
        step: t, counted from 0 in each cycle.
        length: c, steps of the cycle.
        floor: f, where it would be after the cycle's last step.

    Reference:
        Gao Huang et al.: Snapshot Ensembles: Train 1, Get M for Free, ICLR 2017, arXiv:1704.00109, equation 2.

    >>> [round(cosine_factor(step, 4), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    return floor + (1 - floor) * (1 + math.cos(math.pi * step / length)) / 2
