"""Combined predictions of several networks."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["log_mean_sigmoid", "log_mean_softmax"]


def log_mean_softmax(logits: Sequence[Tensor], dim: int = 1) -> Tensor:
    r"""Returns logits of the mean of several networks' probabilities.

    .. math:: \log \frac{1}{K} \sum_k \operatorname{softmax}(z_k)

    They are log probabilities: their softmax is the mean, and their cross entropy that of the mean.

    Args:
        logits: K tensors z, (N, C, ...); 16-bit ones are converted to float32.
        dim: Dimension of the classes.

    Returns:
        (N, C, ...), in the precision of the first.

    >>> one, other = torch.tensor([[9.0, 1.0]]).log(), torch.tensor([[5.0, 5.0]]).log()
    >>> log_mean_softmax([one, other]).exp()
    tensor([[0.7000, 0.3000]])
    """
    logs = torch.stack([F.log_softmax(_precise(entry), dim) for entry in logits])
    return (logs.logsumexp(0) - math.log(len(logs))).to(logits[0].dtype)


def log_mean_sigmoid(logits: Sequence[Tensor]) -> Tensor:
    r"""Returns logits of the mean of several networks' probabilities, for each label independently.

    .. math:: \log \bar p - \log(1 - \bar p), \quad \bar p = \frac{1}{K} \sum_k \sigma(z_k)

    Args:
        logits: K tensors z of one shape; 16-bit ones are converted to float32.

    Returns:
        A tensor of that shape, in the precision of the first.

    >>> log_mean_sigmoid([torch.tensor([0.0]), torch.tensor([torch.inf])]).sigmoid()
    tensor([0.7500])
    """
    stacked = torch.stack([_precise(entry) for entry in logits])
    odds = F.logsigmoid(stacked).logsumexp(0) - F.logsigmoid(-stacked).logsumexp(0)
    return odds.to(logits[0].dtype)


def _precise(logits: Tensor) -> Tensor:
    return logits.float() if torch.finfo(logits.dtype).bits < 32 else logits
