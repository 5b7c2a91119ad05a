"""Dropout at a rate that is learned, given the random numbers."""

import torch
from torch import Tensor

__all__ = ["concrete_mask", "concrete_regularization"]


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
