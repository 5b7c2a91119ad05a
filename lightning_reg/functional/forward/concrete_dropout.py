"""Dropout with a learned rate, given the random numbers."""

import torch
from torch import Tensor

__all__ = ["concrete_mask", "concrete_regularization"]


def concrete_mask(uniform: Tensor, logit: Tensor, temperature: float) -> Tensor:
    r"""Returns a relaxed mask, nearly 0 or 1, through which the dropout rate has a gradient.

    .. math::
        m = 1 - \operatorname{sigmoid}\left(\tfrac{1}{t} \left(\operatorname{logit} p + \operatorname{logit} u
        \right)\right)

    Args:
        uniform: Uniform numbers u on [0, 1), of any shape.
        logit: (), logit of the rate p.
        temperature: Temperature t, above 0; the smaller, the nearer the mask is to 0 and 1.

    Reference:
        Yarin Gal, Jiri Hron, Alex Kendall: Concrete Dropout, NeurIPS 2017, arXiv:1705.07832.

    >>> concrete_mask(torch.tensor([0.0, 0.999]), torch.tensor(0.0), 0.1).round()
    tensor([1., 0.])
    """
    eps = torch.finfo(uniform.dtype).eps
    # Generators may return u = 0, whose logit is infinite.
    odds = torch.logit(uniform, eps=eps)
    return torch.sigmoid(-(logit + odds) / temperature)


def concrete_regularization(
    weight: Tensor, logit: Tensor, num_inputs: int, *, length_scale: float, num_samples: int
) -> Tensor:
    r"""The penalty for a learned dropout rate, added to a mean negative log likelihood: a part of the bound's KL term.

    .. math::
        \frac{1}{N} \left(\frac{l^2}{2 \, (1 - p)} \lVert W \rVert^2 - K \, H(p)\right), \quad
        H(p) = -p \log p - (1 - p) \log (1 - p)

    Without the entropy H the rate would fall to 0; without data it would rise to where the two terms balance.

    Args:
        weight: Weight W of the layer whose inputs are dropped.
        logit: (), logit of the rate p.
        num_inputs: Number K of units that are dropped independently.
        length_scale: Length scale l of the prior over weights, at least 0; the larger, the smoother the functions.
        num_samples: Number N of training samples.

    Returns:
        A scalar in the precision of the weights.

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
