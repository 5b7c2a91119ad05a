r"""Proximal operators: shrinking weights to exact zeros after a step, and projecting them onto constraints.

A proximal operator returns the weights that minimize a penalty plus half the squared distance from where the step went;
a constraint is a penalty that is infinite outside of it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.functional.blocks import cache_sized
from lightning_reg.functional.norms import unit_factors, unit_norms

__all__ = ["group_soft_threshold_", "max_norm_", "non_negative_", "soft_threshold_", "unit_norm_"]


@torch.no_grad()
def soft_threshold_(weights: Sequence[Tensor], threshold: float | Tensor) -> None:
    r"""Moves every weight toward zero by the threshold, or to exactly zero if it is nearer; in place.

    .. math:: w_i \leftarrow \operatorname{sign}(w_i) \max(|w_i| - \tau, 0)

    This is the proximal operator of :func:`~lightning_reg.functional.gradient.penalties.l1_penalty` with τ = ηλ. The
    sign of a complex weight is w / |w|: it keeps its angle.

    Args:
        weights: Tensors of any shapes.
        threshold: Threshold τ, at least 0, in the units of the weights; a scalar tensor isn't moved to the host.

    Reference:
        Ingrid Daubechies, Michel Defrise, Christine De Mol: An Iterative Thresholding Algorithm for Linear Inverse
        Problems with a Sparsity Constraint, Communications on Pure and Applied Mathematics 57, 2004,
        arXiv:math/0307152.

    >>> weight = torch.tensor([3.0, -4.0, 0.5])
    >>> soft_threshold_([weight], 1.0)
    >>> weight
    tensor([ 2., -3.,  0.])
    """
    for weight in weights:
        if weight.is_complex():
            sizes = weight.abs()
            _multiply_(weight, torch.where(sizes > threshold, 1 - threshold / sizes, 0))
    weights = [weight for weight in weights if not weight.is_complex()]
    if isinstance(threshold, Tensor):
        for weight in weights:
            bound = threshold.to(weight.dtype)
            weight.sub_(weight.clamp(-bound, bound))
        return
    for part in cache_sized(weights):
        if len(weights[part]) == 1:
            torch.ops.aten.softshrink.out(weights[part][0], threshold, out=weights[part][0])  # one pass, in place
            continue
        bounded = torch._foreach_clamp_max(list(weights[part]), threshold)
        torch._foreach_clamp_min_(bounded, -threshold)
        torch._foreach_sub_(list(weights[part]), bounded)


@torch.no_grad()
def group_soft_threshold_(groups: Sequence[Tensor], threshold: float | Tensor) -> None:
    r"""Shrinks the norm of every group of weights, and sets small groups to exactly zero; in place.

    .. math:: w_g \leftarrow \max(1 - \tau \sqrt{n_g} / \lVert w_g \rVert_2, 0) \, w_g

    This is the proximal operator of :func:`~lightning_reg.functional.gradient.penalties.group_lasso_penalty` with
    τ = ηλ.

    Args:
        groups: Tensors (groups, ...) of at least two dimensions.
        threshold: Threshold τ, at least 0, in the units of the weights; a scalar tensor isn't moved to the host.

    Reference:
        Ming Yuan, Yi Lin: Model Selection and Estimation in Regression with Grouped Variables, Journal of the Royal
        Statistical Society B 68, 2006.

    >>> weight = torch.tensor([[6.0, 8.0], [0.3, 0.4]])
    >>> group_soft_threshold_([weight], 1 / 2**0.5)
    >>> weight
    tensor([[5.4000, 7.2000],
            [0.0000, 0.0000]])
    """
    for group in groups:
        norms = unit_norms(group)
        shorter = (1 - threshold * group[0].numel() ** 0.5 / norms).clamp(min=0)
        _multiply_(group, torch.where(norms > 0, shorter, 0))


@torch.no_grad()
def max_norm_(units: Sequence[Tensor], max_norm: float) -> None:
    r"""Scales down the weights of every unit whose norm exceeds the maximum; in place.

    .. math:: w_u \leftarrow w_u \min(1, c / \lVert w_u \rVert_2)

    Args:
        units: Tensors (units, ...).
        max_norm: Largest norm c, positive.

    Reference:
        Nitish Srivastava, Geoffrey Hinton, Alex Krizhevsky, Ilya Sutskever, Ruslan Salakhutdinov: Dropout: A Simple Way
        to Prevent Neural Networks from Overfitting, JMLR 15, 2014.

    >>> weight = torch.tensor([[6.0, 8.0], [0.3, 0.4]])
    >>> max_norm_([weight], 5.0)
    >>> weight
    tensor([[3.0000, 4.0000],
            [0.3000, 0.4000]])
    """
    # Units within the limit are multiplied by exactly 1.
    factors = unit_factors(units, lambda norms: torch.where(norms > max_norm, max_norm / norms, 1))
    for unit, factor in zip(units, factors, strict=True):
        _multiply_(unit, factor)


@torch.no_grad()
def unit_norm_(units: Sequence[Tensor]) -> None:
    r"""Scales the weights of every unit to norm 1; in place.

    .. math:: w_u \leftarrow w_u / \lVert w_u \rVert_2

    Units whose weights are all zero have no direction and stay.

    Args:
        units: Tensors (units, ...).

    Reference:
        Tim Salimans, Diederik P. Kingma: Weight Normalization, NeurIPS 2016, arXiv:1602.07868, with the length held
        at 1.

    >>> weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    >>> unit_norm_([weight])
    >>> weight
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    factors = unit_factors(units, lambda norms: torch.where(norms > 0, 1 / norms, 1))
    for unit, factor in zip(units, factors, strict=True):
        _multiply_(unit, factor)


@torch.no_grad()
def non_negative_(weights: Sequence[Tensor]) -> None:
    r"""Sets negative weights to zero; in place.

    .. math:: w_i \leftarrow \max(w_i, 0)

    Args:
        weights: Real tensors of any shapes; complex numbers have no order.

    Reference:
        Daniel D. Lee, H. Sebastian Seung: Learning the Parts of Objects by Non-negative Matrix Factorization, Nature
        401, 1999.

    >>> weight = torch.tensor([3.0, -4.0])
    >>> non_negative_([weight])
    >>> weight
    tensor([3., 0.])
    """
    if weights:
        torch._foreach_clamp_min_(list(weights), 0)


def _multiply_(units: Tensor, factors: Tensor) -> None:
    if units.dtype == factors.dtype:
        units.mul_(factors)
    else:  # complex, or 16 bits, where a factor may be out of range or precision although the product isn't
        units.copy_(units * factors)
