"""Singular vectors of a matrix's largest singular value, and its stable rank."""

import torch
from torch import Tensor

__all__ = ["singular_vectors", "stable_rank"]


@torch.no_grad()
def singular_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns the singular vectors of the largest singular value.

    .. math:: W v = \sigma u, \quad W^\top u = \sigma v

    Args:
        matrix: Floating-point matrix W, (m, n).

    Returns:
        Unit vectors u, (m,), and v, (n,).

    >>> u, v = singular_vectors(torch.diag(torch.tensor([1.0, 3.0])))
    >>> u.abs(), (u @ v).abs()
    (tensor([0., 1.]), tensor(1.))
    """
    # The eigenvectors of the smaller of W Wᵀ and Wᵀ W; the largest one is well conditioned.
    precise = matrix.double() if matrix.device.type != "mps" else matrix.float()
    is_tall = precise.shape[0] > precise.shape[1]
    short = precise.T if is_tall else precise  # (min(m, n), max(m, n))
    first = torch.linalg.eigh(short @ short.T).eigenvectors[:, -1]
    second = torch.nn.functional.normalize(short.T @ first, dim=0)
    u, v = (second, first) if is_tall else (first, second)
    return u.to(matrix.dtype), v.to(matrix.dtype)


@torch.no_grad()
def stable_rank(matrix: Tensor, *, iterations: int = 20) -> Tensor:
    r"""The squared Frobenius norm divided by the squared spectral norm: the effective number of directions of a matrix.

    .. math:: \frac{\lVert W \rVert_F^2}{\lVert W \rVert_2^2} \in [1, \operatorname{rank} W]

    The spectral norm is computed by power iterations from the longest row, without random numbers. It is approached
    from below, and so the rank from above, within some percent where several singular values are nearly the largest.

    Args:
        matrix: (R, ...), flattened to (R, C).
        iterations: Number of power iterations, at least 1.

    Returns:
        A scalar; 0 for a matrix of zeros.

    Reference:
        Mark Rudelson, Roman Vershynin: Sampling from large matrices: an approach through geometric functional analysis,
        Journal of the ACM 54, 2007.

    >>> stable_rank(torch.diag(torch.tensor([2.0, 2.0, 0.0])))
    tensor(2.0000)
    """
    rows = matrix.detach().flatten(1).float()
    tiny = torch.finfo(torch.float32).tiny
    lengths = torch.linalg.vector_norm(rows, dim=1)
    vector = rows.index_select(0, lengths.argmax().unsqueeze(0)).squeeze(0)
    spectral = lengths.new_zeros(())
    for _ in range(iterations):
        image = rows @ (vector / torch.linalg.vector_norm(vector).clamp(min=tiny))
        spectral = torch.linalg.vector_norm(image)
        vector = image @ rows
    ratio = torch.linalg.vector_norm(lengths) / spectral.clamp(min=tiny)
    return torch.square(ratio)
