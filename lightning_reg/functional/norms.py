"""Norms of tensors and of their units, without a transfer to the host."""

import functools
from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

__all__ = ["norm", "norms_of", "total_norm", "unit_factors", "unit_norms"]


def norm(tensor: Tensor, norm_type: float, dim: Sequence[int] | None = None, *, keepdim: bool = False) -> Tensor:
    """Returns a norm that is summed at least in float32.

    Sums of squares in 16 bits would lose digits, and overflow in float16.

    Args:
        tensor: Real or complex tensor of any shape.
        norm_type: Order of the norm.
        dim: Dimensions to reduce; None for all.
        keepdim: Whether the result keeps these dimensions with size 1.

    >>> norm(torch.full((4,), 300.0, dtype=torch.float16), 2)
    tensor(600.)
    """
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    axes = None if dim is None else tuple(dim)
    result: Tensor = torch.linalg.vector_norm(tensor, norm_type, dim=axes, keepdim=keepdim, dtype=dtype)
    return result


def norms_of(tensors: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """Returns the norm of every tensor.

    Args:
        tensors: Tensors on one device; at least one.
        norm_type: Order of the norm; ``float("inf")`` for the largest absolute value.

    Returns:
        A tensor (len(tensors),), real and at least in float32; complex entries count by their absolute values.

    >>> norms_of([torch.tensor([3.0, 4.0]), torch.tensor([-2.0])])
    tensor([5., 2.])
    """
    dtype = functools.reduce(torch.promote_types, {tensor.dtype for tensor in tensors}, torch.float32)
    if dtype.is_complex:  # a complex dtype isn't allowed for real tensors
        return torch.stack([norm(tensor, norm_type) for tensor in tensors])
    return torch.stack(torch._foreach_norm(list(tensors), norm_type, dtype=dtype))


def total_norm(norms: Tensor, norm_type: float = 2.0) -> Tensor:
    """Returns the norm of a whole from the norms of its parts.

    Args:
        norms: Norms of the parts, as :func:`norms_of` returns them.
        norm_type: Order of the norm.

    Returns:
        A scalar tensor.

    >>> total_norm(torch.tensor([3.0, 4.0]))
    tensor(5.)
    """
    total: Tensor = torch.linalg.vector_norm(norms, norm_type)
    return total


def unit_norms(units: Tensor) -> Tensor:
    """Returns the Euclidean norm of every unit.

    Args:
        units: (units, ...); a tensor of one dimension is one unit.

    Returns:
        A tensor (units, 1, ...) that broadcasts against ``units``, real and at least in float32.

    >>> unit_norms(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([[5.],
            [2.]])
    """
    return norm(units, 2, range(1, units.ndim) or None, keepdim=units.ndim > 1)


def unit_factors(units: Sequence[Tensor], factor_of: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Applies a function to the norms of all units, and returns for each tensor a factor that broadcasts to its shape.

    The function takes several operations, which would cost more than the norms if they ran for each tensor.

    Args:
        units: Tensors (units, ...).
        factor_of: Elementwise function from norms (n,) to factors (n,).

    >>> unit_factors([torch.tensor([[3.0, 4.0]]), torch.ones(2, 1)], torch.reciprocal)
    [tensor([[0.2000]]), tensor([[1.],
            [1.]])]
    """
    norms = [unit_norms(unit) for unit in units]
    factors: list[Tensor] = []
    for _, alike in groupby(norms, key=lambda values: (values.device, values.dtype)):
        part = list(alike)
        made = factor_of(part[0].flatten() if len(part) == 1 else torch.cat([values.flatten() for values in part]))
        sizes = [values.numel() for values in part]
        factors += [few.view(values.shape) for few, values in zip(torch.split(made, sizes), part, strict=True)]
    return factors
