"""A number for each unit of many tensors, computed of all units' norms at once."""

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from lightning_reg.functional.gradients import unit_norms

__all__ = ["unit_factors"]


def unit_factors(units: Sequence[Tensor], factor_of: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Returns what a function makes of the norm of every unit, for each tensor in a shape that broadcasts to its own.

    What is done to a norm takes several operations; done for each tensor, they would cost more than the norms do.

    Args:
        units: Tensors whose first dimension counts the units.
        factor_of: From norms (n,) to as many factors, each by itself.

    >>> unit_factors([torch.tensor([[3.0, 4.0]]), torch.ones(2, 1)], torch.reciprocal)
    [tensor([[0.2000]]), tensor([[1.],
            [1.]])]
    """
    norms = [unit_norms(unit) for unit in units]
    factors: list[Tensor] = []
    for _, alike in groupby(norms, key=lambda norm: (norm.device, norm.dtype)):
        part = list(alike)
        made = factor_of(part[0].flatten() if len(part) == 1 else torch.cat([norm.flatten() for norm in part]))
        sizes = [norm.numel() for norm in part]
        factors += [few.view(norm.shape) for few, norm in zip(torch.split(made, sizes), part, strict=True)]
    return factors
