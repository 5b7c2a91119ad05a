"""Categories of a table's columns as numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["one_hot_columns"]


def one_hot_columns(codes: Tensor, cardinalities: Sequence[int]) -> Tensor:
    """Encodes several columns of categories at once, each by a block of zeros with a single 1.

    Args:
        codes: (N, K), integers; those of column k are in [0, cardinalities[k]).
        cardinalities: How many categories each of the K columns has.

    Returns:
        (N, sum of the cardinalities), float32.

    >>> one_hot_columns(torch.tensor([[1, 0], [0, 2]]), [2, 3])
    tensor([[0., 1., 1., 0., 0.],
            [1., 0., 0., 0., 1.]])
    """
    starts = torch.tensor([0, *cardinalities[:-1]]).cumsum(0).to(codes.device, non_blocking=True)
    encoded = torch.zeros(len(codes), sum(cardinalities), device=codes.device)
    return encoded.scatter_(1, codes + starts, 1.0)
