r"""Penalties on the distance of weight matrices from orthonormal rows: exact, and estimated with random vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "add_orthogonal_gradient_",
    "add_probed_orthogonal_gradient_",
    "orthogonal_penalty",
    "probed_orthogonal_penalty",
]

Strength = float | Tensor


def orthogonal_penalty(matrices: Sequence[Tensor], strength: float) -> Tensor:
    r"""The squared distance of rows (or columns, where they are fewer) from being orthonormal.

    .. math:: P(W) = \lambda \sum_W \lVert W W^\top - I \rVert_F^2

    More rows than columns can't be orthogonal to one another; W^T W is used then. Both have the same gradient. Complex
    matrices are transposed and conjugated.

    Args:
        matrices: Tensors (units, ...); further dimensions are flattened, so that a filter of a convolution is a row.
        strength: Strength λ, dimensionless, at least 0.

    Returns:
        A scalar tensor, differentiable in the weights.

    Reference:
        Nitin Bansal, Xiaohan Chen, Zhangyang Wang: Can We Gain More from Orthogonality Regularizations in Training Deep
        CNNs?, NeurIPS 2018, arXiv:1810.09102.

    >>> orthogonal_penalty([2 * torch.eye(2)], 1.0)
    tensor(18.)
    """
    return strength * torch.stack([_squares(_excess(_flat(matrix))).sum() for matrix in matrices]).sum()


@torch.no_grad()
def add_orthogonal_gradient_(gradients: Sequence[Tensor], matrices: Sequence[Tensor], strength: Strength) -> None:
    r"""Adds the gradient of :func:`orthogonal_penalty` to ``gradients``, in place.

    .. math:: G \leftarrow G + 4 \lambda (W W^\top - I) W

    Args:
        gradients: Tensors that the gradient is added to, of the matrices' shapes and dtypes.
        matrices: Tensors (units, ...).
        strength: Strength λ; a scalar tensor isn't moved to the host.

    >>> gradient = torch.zeros(2, 2)
    >>> add_orthogonal_gradient_([gradient], [2 * torch.eye(2)], 1.0)
    >>> gradient.diag()
    tensor([24., 24.])
    """
    for gradient, matrix in zip(gradients, matrices, strict=True):
        flat = _flat(matrix)
        excess = _excess(flat)
        # (W Wᵀ − I) W = W (Wᵀ W − I): the smaller of the two products is computed.
        change = excess @ flat if len(excess) == len(flat) else flat @ excess
        gradient.add_(change.view(matrix.shape) * (4 * strength))


def probed_orthogonal_penalty(matrices: Sequence[Tensor], probes: Sequence[Tensor], strength: float) -> Tensor:
    r"""An estimate of :func:`orthogonal_penalty` from random vectors, without the product of the matrix with itself.

    .. math:: P(W) = \lambda \sum_W \frac{1}{r} \sum_{k=1}^{r} \lVert (W W^\top - I) v_k \rVert^2

    For :math:`v \sim N(0, I)` its expectation is :func:`orthogonal_penalty`, at a cost of r · rows · columns.

    Args:
        matrices: Tensors (units, ...).
        probes: (s, r), r random vectors v for each matrix, where s is the smaller of rows and columns.
        strength: Strength λ, dimensionless, at least 0.

    Returns:
        A scalar tensor, differentiable in the weights.

    >>> probed_orthogonal_penalty([2 * torch.eye(2)], [torch.eye(2)], 1.0)
    tensor(9.)
    """
    found = [_probed(_wide(_flat(matrix)), vectors.mH)[1] for matrix, vectors in zip(matrices, probes, strict=True)]
    return strength * torch.stack([_squares(excess).sum() / len(excess) for excess in found]).sum()


@torch.no_grad()
def add_probed_orthogonal_gradient_(
    gradients: Sequence[Tensor], matrices: Sequence[Tensor], probes: Sequence[Tensor], strength: Strength
) -> None:
    r"""Adds the gradient of :func:`probed_orthogonal_penalty` to ``gradients``, in place.

    .. math:: G \leftarrow G + \frac{2 \lambda}{r} (V R^\top + R V^\top) W, \quad R = (W W^\top - I) V

    Args:
        gradients: Tensors that the gradient is added to, of the matrices' shapes and dtypes.
        matrices: Tensors (units, ...).
        probes: Random vectors, as for :func:`probed_orthogonal_penalty`.
        strength: Strength λ; a scalar tensor isn't moved to the host.

    >>> gradient = torch.zeros(2, 2)
    >>> add_probed_orthogonal_gradient_([gradient], [2 * torch.eye(2)], [torch.eye(2)], 1.0)
    >>> gradient.diag()
    tensor([12., 12.])
    """
    for gradient, matrix, vectors in zip(gradients, matrices, probes, strict=True):
        flat = _flat(matrix)
        wide = _wide(flat)
        rows = vectors.mH
        product, excess = _probed(wide, rows)
        # V (Rᵀ W) + R (Vᵀ W) as one product of stacked matrices.
        left = torch.cat([rows, excess]).mH * (2 * strength / len(rows))
        right = torch.cat([excess @ wide, product])
        if len(wide) != len(flat):
            left, right = right.mH, left.mH
        if gradient.is_contiguous() and gradient.dtype == left.dtype:
            gradient.flatten(1).addmm_(left, right)
        else:
            gradient.add_((left @ right).view(matrix.shape))


def _wide(flat: Tensor) -> Tensor:
    """Returns a matrix, or its transpose, with at least as many columns as rows."""
    return flat if flat.shape[0] <= flat.shape[1] else flat.mH


def _probed(wide: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns Vᵀ W and Rᵀ for vectors stored as rows: with columns, a CPU takes ten times as long for W^T V."""
    product = rows @ wide
    return product, product @ wide.mH - rows


def _flat(matrix: Tensor) -> Tensor:
    return matrix.flatten(1).to(torch.promote_types(matrix.dtype, torch.float32))


def _excess(matrix: Tensor) -> Tensor:
    gram = matrix @ matrix.mH if matrix.shape[0] <= matrix.shape[1] else matrix.mH @ matrix
    gram.diagonal().sub_(1)
    return gram


def _squares(matrix: Tensor) -> Tensor:
    return (torch.view_as_real(matrix) if matrix.is_complex() else matrix).square()
