r"""Penalties on weights: their value, and their gradient added in place.

Both are here because a training step needs only the gradient: adding it directly costs a fraction of what
differentiating the value through autograd costs, and needs no graph. Complex weights count by their absolute values,
and their gradients follow torch's convention: that of the real part plus i times that of the imaginary part.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.functional.blocks import BLOCK, cache_sized
from lightning_reg.functional.norms import norm, unit_factors

__all__ = [
    "add_elastic_net_gradient_",
    "add_group_lasso_gradient_",
    "add_l2_sp_gradient_",
    "elastic_net_penalty",
    "group_lasso_penalty",
    "l1_penalty",
    "l2_penalty",
    "l2_sp_penalty",
]

Strength = float | Tensor

_SMALL = 16_384  # number of elements below which a buffer for intermediate results isn't worth its calls


def l1_penalty(weights: Sequence[Tensor], strength: float) -> Tensor:
    r"""The sum of all absolute values, times the strength.

    .. math:: P(w) = \lambda \sum_i |w_i|

    Args:
        weights: Tensors of any shapes, on one device.
        strength: Strength λ, dimensionless, at least 0.

    Returns:
        A scalar tensor, differentiable in the weights.

    Reference:
        Robert Tibshirani: Regression Shrinkage and Selection via the Lasso, Journal of the Royal Statistical Society B
        58, 1996.

    >>> l1_penalty([torch.tensor([3.0, -4.0])], 0.1)
    tensor(0.7000)
    """
    return strength * torch.stack([norm(weight, 1) for weight in weights]).sum()


def l2_penalty(weights: Sequence[Tensor], strength: float) -> Tensor:
    r"""Half the squared Euclidean norm of all weights, times the strength.

    .. math:: P(w) = \frac{\lambda}{2} \sum_i w_i^2

    A plain gradient step of size η then multiplies every weight by (1 − ηλ) in addition to following the loss.

    Args:
        weights: Tensors of any shapes, on one device.
        strength: Strength λ, dimensionless, at least 0.

    Returns:
        A scalar tensor, differentiable in the weights.

    Reference:
        Anders Krogh, John A. Hertz: A Simple Weight Decay Can Improve Generalization, NeurIPS 1991.

    >>> l2_penalty([torch.tensor([3.0, 4.0])], 0.1)
    tensor(1.2500)
    """
    return strength / 2 * torch.stack([norm(weight, 2) for weight in weights]).square().sum()


def elastic_net_penalty(weights: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    r"""The sum of :func:`l1_penalty` and :func:`l2_penalty`.

    .. math:: P(w) = \lambda_1 \sum_i |w_i| + \frac{\lambda_2}{2} \sum_i w_i^2

    Args:
        weights: Tensors of any shapes, on one device.
        l1: Strength λ₁, at least 0.
        l2: Strength λ₂, at least 0.

    Returns:
        A scalar tensor, differentiable in the weights.

    Reference:
        Hui Zou, Trevor Hastie: Regularization and Variable Selection via the Elastic Net, Journal of the Royal
        Statistical Society B 67, 2005.

    >>> elastic_net_penalty([torch.tensor([3.0, -4.0])], 0.1, 0.1)
    tensor(1.9500)
    """
    return l1_penalty(weights, l1) + l2_penalty(weights, l2)


@torch.no_grad()
def add_elastic_net_gradient_(
    gradients: Sequence[Tensor], weights: Sequence[Tensor], *, l1: Strength = 0.0, l2: Strength = 0.0
) -> None:
    r"""Adds the gradient of :func:`elastic_net_penalty` to ``gradients``, in place; also that of L1 or L2 alone.

    .. math:: g_i \leftarrow g_i + \lambda_1 \operatorname{sign}(w_i) + \lambda_2 w_i

    The sign of a complex weight is w / |w|. Where a weight is exactly zero, L1 has the subgradient 0.

    Args:
        gradients: Tensors that the gradient is added to, of the weights' shapes and dtypes.
        weights: Penalized weights.
        l1: Strength λ₁, at least 0; a scalar tensor isn't moved to the host.
        l2: Strength λ₂, at least 0.

    >>> gradient, weight = torch.zeros(2), torch.tensor([3.0, -4.0])
    >>> add_elastic_net_gradient_([gradient], [weight], l1=1.0, l2=0.1)
    >>> gradient
    tensor([ 1.3000, -1.4000])
    """
    with_l1 = isinstance(l1, Tensor) or l1 != 0
    with_l2 = isinstance(l2, Tensor) or l2 != 0
    if not with_l1 and with_l2:
        _add_scaled_(gradients, weights, l2)
        return
    if not with_l1:
        return
    buffer: Tensor | None = None  # one for all: it stays in the cache, and allocating memory costs as much as using it
    for part in cache_sized(weights, BLOCK):
        parts, terms = gradients[part], weights[part]
        if len(parts) == 1 and _is_worth_blocks(parts[0], terms[0]):
            if buffer is None or buffer.dtype != terms[0].dtype:
                buffer = torch.empty(BLOCK, dtype=terms[0].dtype)
            _add_in_blocks_(parts[0], terms[0], l1, l2 if with_l2 else None, buffer)
            continue
        _add_scaled_(parts, _signs(terms), l1)
        if with_l2:
            _add_scaled_(parts, terms, l2)


def group_lasso_penalty(groups: Sequence[Tensor], strength: float) -> Tensor:
    r"""The Euclidean norm of each group of weights, times the square root of the group's size.

    .. math:: P(w) = \lambda \sum_g \sqrt{n_g} \, \lVert w_g \rVert_2

    Args:
        groups: Tensors (groups, ...) of at least two dimensions, such as (units, inputs).
        strength: Strength λ, dimensionless, at least 0.

    Returns:
        A scalar tensor, differentiable in the weights except where a whole group is zero.

    Reference:
        Ming Yuan, Yi Lin: Model Selection and Estimation in Regression with Grouped Variables, Journal of the Royal
        Statistical Society B 68, 2006.

    >>> group_lasso_penalty([torch.tensor([[3.0, 4.0], [0.0, 0.0]])], 1.0)
    tensor(7.0711)
    """
    sums = [group[0].numel() ** 0.5 * norm(group, 2, dim=range(1, group.ndim)).sum() for group in groups]
    return strength * torch.stack(sums).sum()


@torch.no_grad()
def add_group_lasso_gradient_(gradients: Sequence[Tensor], groups: Sequence[Tensor], strength: Strength) -> None:
    r"""Adds the gradient of :func:`group_lasso_penalty` to ``gradients``, in place.

    .. math:: g \leftarrow g + \lambda \sqrt{n_g} \, w_g / \lVert w_g \rVert_2

    Where a whole group is zero it has the subgradient 0.

    Args:
        gradients: Tensors that the gradient is added to, of the groups' shapes and dtypes.
        groups: Tensors (groups, ...) of at least two dimensions.
        strength: Strength λ; a scalar tensor isn't moved to the host.

    >>> gradient, weight = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    >>> add_group_lasso_gradient_([gradient], [weight], 1.0)
    >>> gradient
    tensor([[0.8485, 1.1314]])
    """
    factors = unit_factors(groups, lambda norms: torch.where(norms > 0, strength / norms, 0))
    for gradient, group, factor in zip(gradients, groups, factors, strict=True):
        root = group[0].numel() ** 0.5
        if group.dtype == factor.dtype:
            gradient.addcmul_(group, factor, value=root)
        else:  # a factor may be too large for float16, though the product isn't
            gradient.add_((group * factor).mul_(root).to(gradient.dtype))


def l2_sp_penalty(weights: Sequence[Tensor], starts: Sequence[Tensor], strength: float) -> Tensor:
    r"""Half the squared distance from the initial weights, times the strength.

    .. math:: P(w) = \frac{\lambda}{2} \sum_i (w_i - w_i^0)^2

    Args:
        weights: Tensors of any shapes, on one device.
        starts: Initial weights w⁰, of the same shapes.
        strength: Strength λ, dimensionless, at least 0.

    Returns:
        A scalar tensor, differentiable in the weights.

    Reference:
        Xuhong Li, Yves Grandvalet, Franck Davoine: Explicit Inductive Bias for Transfer Learning with Convolutional
        Networks, ICML 2018, arXiv:1802.01483.

    >>> l2_sp_penalty([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 2.0])], 0.5)
    tensor(1.)
    """
    return l2_penalty([weight - start for weight, start in zip(weights, starts, strict=True)], strength)


@torch.no_grad()
def add_l2_sp_gradient_(
    gradients: Sequence[Tensor], weights: Sequence[Tensor], starts: Sequence[Tensor], strength: Strength
) -> None:
    r"""Adds the gradient of :func:`l2_sp_penalty` to ``gradients``, in place.

    .. math:: g_i \leftarrow g_i + \lambda (w_i - w_i^0)

    Args:
        gradients: Tensors that the gradient is added to, of the weights' shapes and dtypes.
        weights: Penalized weights.
        starts: Initial weights w⁰.
        strength: Strength λ; a scalar tensor isn't moved to the host.

    >>> gradient = torch.zeros(2)
    >>> add_l2_sp_gradient_([gradient], [torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 2.0])], 0.5)
    >>> gradient
    tensor([0., 1.])
    """
    # Weights that haven't moved get an exact zero, which two separate additions wouldn't give.
    for part in cache_sized(weights, BLOCK):
        parts, ends, origins = gradients[part], weights[part], starts[part]
        if len(parts) == 1 and _is_worth_blocks(parts[0], ends[0]) and ends[0].stride() == origins[0].stride():
            blocks = (torch.split(values.view(-1), BLOCK) for values in (parts[0], ends[0], origins[0]))
            for block, end, origin in zip(*blocks, strict=True):
                _add_(block, end - origin, strength)
        else:
            _add_scaled_(parts, torch._foreach_sub(list(ends), list(origins)), strength)


def _add_scaled_(gradients: Sequence[Tensor], terms: Sequence[Tensor], strength: Strength) -> None:
    if isinstance(strength, Tensor):
        torch._foreach_add_(list(gradients), torch._foreach_mul(list(terms), strength))
    else:
        torch._foreach_add_(list(gradients), list(terms), alpha=strength)


def _signs(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    if any(weight.is_complex() for weight in weights):
        return [torch.sgn(weight) for weight in weights]
    return torch._foreach_sign(list(weights))


def _is_worth_blocks(gradient: Tensor, weight: Tensor) -> bool:
    # On a GPU every block would be a kernel launch; for small tensors calls cost more than memory does.
    return (
        gradient.device.type == "cpu"
        and gradient.numel() > min(BLOCK, _SMALL)
        and gradient.stride() == weight.stride()
        and gradient.is_contiguous()
    )


def _add_in_blocks_(gradient: Tensor, weight: Tensor, l1: Strength, l2: Strength | None, buffer: Tensor) -> None:
    block = len(buffer)
    for part, values in zip(torch.split(gradient.view(-1), block), torch.split(weight.view(-1), block), strict=True):
        if l2 is not None:
            _add_(part, values, l2)
        _add_(part, torch.sgn(values, out=buffer[: len(values)]), l1)


def _add_(gradient: Tensor, term: Tensor, strength: Strength) -> None:
    if isinstance(strength, Tensor):
        gradient.addcmul_(term, strength.to(term.dtype))
    else:
        gradient.add_(term, alpha=strength)
