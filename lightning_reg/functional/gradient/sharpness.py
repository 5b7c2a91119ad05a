r"""The ascent step of sharpness-aware minimization, to the highest loss nearby, and back.

Nothing here synchronizes with the device. An ascent takes three steps, so that norms can be summed over processes in
between: :func:`scale_to_weights_` (for adaptive ones only), :func:`climbing_factor` of the gradient's norm, and
:func:`climb_`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.functional.blocks import portions

__all__ = ["climb_", "climbing_factor", "gradients_of_climb", "hardest", "scale_to_weights_"]


@torch.no_grad()
def scale_to_weights_(gradients: Sequence[Tensor], weights: Sequence[Tensor], eta: float) -> None:
    r"""Multiplies gradients by the size of their weights, in place.

    .. math:: g \leftarrow T g, \quad T = |w| + \eta

    Args:
        gradients: Gradients g; at least one tensor.
        weights: Weights w, of the same shapes.
        eta: Number η added to the sizes, so that small weights move, too.

    >>> gradient = torch.tensor([1.0, 1.0])
    >>> scale_to_weights_([gradient], [torch.tensor([-2.0, 0.0])], 0.5)
    >>> gradient
    tensor([2.5000, 0.5000])
    """
    for slopes, values in portions(gradients, weights):
        torch._foreach_mul_(slopes, _sizes(values, eta))


def climbing_factor(length: Tensor, rho: float) -> Tensor:
    r"""Returns the factor that gives gradients the norm ρ.

    .. math:: c = \rho \, / \, \lVert g \rVert

    Args:
        length: Norm ‖g‖, a scalar tensor.
        rho: Radius ρ of the neighborhood, at least 0.

    Returns:
        A scalar; 0 where the gradient is zero or not finite.

    >>> climbing_factor(torch.tensor([4.0, 0.0, float("inf")]), 0.5)
    tensor([0.1250, 0.0000, 0.0000])
    """
    return torch.where((length > 0) & length.isfinite(), rho / length, torch.zeros_like(length))


@torch.no_grad()
def climb_(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    before: Sequence[Tensor],
    factor: Tensor,
    eta: float | None = None,
) -> None:
    r"""Copies weights, then moves them along gradients by a step of given length, in place.

    .. math:: w \leftarrow w + c \, g \quad \text{or, where adaptive,} \quad w \leftarrow w + c \, T g

    On a CPU this works in portions that stay in the cache: each number is read and written once.

    Args:
        weights: Weights w; at least one tensor.
        gradients: Gradients g, of the same shapes; where adaptive, after :func:`scale_to_weights_`.
        before: Tensors of the same shapes, to which the weights are copied before they move.
        factor: Factor c from :func:`climbing_factor`, a scalar tensor.
        eta: Number η in T = |w| + η; None where the step isn't adaptive.

    Reference:
        Pierre Foret, Ariel Kleiner, Hossein Mobahi, Behnam Neyshabur: Sharpness-Aware Minimization for Efficiently
        Improving Generalization, ICLR 2021, arXiv:2010.01412. Jungmin Kwon, Jeongseop Kim, Hyunseo Park, In Kwon Choi:
        ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks, ICML 2021,
        arXiv:2102.11600.

    >>> weight, kept = torch.tensor([1.0]), torch.zeros(1)
    >>> climb_([weight], [torch.tensor([2.0])], [kept], torch.tensor(0.25))
    >>> weight, kept
    (tensor([1.5000]), tensor([1.]))
    """
    for values, slopes, kept in portions(weights, gradients, before):
        torch._foreach_copy_(kept, values)
        steps = torch._foreach_mul(slopes, factor)
        if eta is not None:
            torch._foreach_mul_(steps, _sizes(kept, eta))
        torch._foreach_add_(values, steps)


@torch.no_grad()
def gradients_of_climb(
    before: Sequence[Tensor], after: Sequence[Tensor], factor: Tensor, eta: float | None = None
) -> list[Tensor]:
    r"""Returns the gradients of an ascent step, recovered from the weights up to their rounding.

    .. math:: g = (w' - w) / c \quad \text{or, where adaptive,} \quad g = (w' - w) / (c \, T^2)

    Args:
        before: Weights w before the step; at least one tensor.
        after: Weights w' after :func:`climb_`.
        factor: Factor c of the step, a scalar tensor; where it is 0, gradients are NaN.
        eta: Number η in T = |w| + η; None where the step wasn't adaptive.

    >>> gradients_of_climb([torch.tensor([1.0])], [torch.tensor([1.5])], torch.tensor(0.25))
    [tensor([2.])]
    """
    gradients = torch._foreach_sub(list(after), list(before))
    torch._foreach_div_(gradients, factor)
    if eta is not None:
        sizes = _sizes(before, eta)
        torch._foreach_mul_(sizes, sizes)
        torch._foreach_div_(gradients, sizes)
    return list(gradients)


def hardest(losses: Tensor, fraction: float) -> Tensor:
    r"""Returns the samples with the largest losses, :math:`\lceil \gamma N \rceil` of them, in their order.

    Args:
        losses: (N,), loss of each sample.
        fraction: Fraction γ of samples, in (0, 1].

    Returns:
        Indices of the samples, at least one.

    >>> hardest(torch.tensor([0.1, 2.0, 0.3, 1.0]), 0.5)
    tensor([1, 3])
    """
    return losses.topk(math.ceil(fraction * len(losses))).indices.sort().values


def _sizes(weights: Sequence[Tensor], eta: float) -> list[Tensor]:
    sizes = torch._foreach_abs(list(weights))
    torch._foreach_add_(sizes, eta)
    return list(sizes)
