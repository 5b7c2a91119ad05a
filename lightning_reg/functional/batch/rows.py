"""Mixing and blanking of a table's columns, row by row."""

import torch
from torch import Tensor

__all__ = ["blank_columns", "drawn_columns", "paste_columns_from_previous"]


def drawn_columns(counts: Tensor, num_columns: int, *, generator: torch.Generator) -> Tensor:
    """Draws sets of columns, uniformly among those of each set's size.

    Args:
        counts: (M,), number of columns of each set.
        num_columns: Number F of columns to draw from.
        generator: Source of random numbers.

    Returns:
        (M, F), bools.

    >>> drawn_columns(torch.tensor([2, 0]), 5, generator=torch.Generator().manual_seed(0)).sum(1)
    tensor([2, 0])
    """
    order = torch.rand((len(counts), num_columns), generator=generator).argsort(1)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(num_columns).expand_as(order))
    return ranks < counts.unsqueeze(1)


def paste_columns_from_previous(rows: Tensor, columns: Tensor) -> Tensor:
    r"""Takes some columns of every row from the row before it; the first row from the last.

    .. math:: y_{if} = x_{i-1,f} \text{ for } f \in S_i, \text{ else } x_{if}

    Args:
        rows: (N, D).
        columns: (D,) or (N, D), bools, True for the columns S to take.

    Returns:
        A new tensor, (N, D).

    Reference:
        Arlind Kadra, Marius Lindauer, Frank Hutter, Josif Grabocka: Well-tuned Simple Nets Excel on Tabular Datasets,
        NeurIPS 2021, arXiv:2106.11189.

    >>> paste_columns_from_previous(torch.tensor([[1, 2], [3, 4]]), torch.tensor([False, True]))
    tensor([[1, 4],
            [3, 2]])
    """
    return torch.where(columns, rows.roll(1, 0), rows)


def blank_columns(rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """Puts given values into some columns of every row.

    Args:
        rows: (N, D).
        columns: (N, D), bools, True where a value is replaced.
        values: (D,), or a scalar, to put there.

    Returns:
        A new tensor, (N, D).

    >>> blank_columns(torch.tensor([[1.0, 2.0]]), torch.tensor([[False, True]]), torch.tensor([7.0, 8.0]))
    tensor([[1., 8.]])
    """
    return torch.where(columns, values.to(rows.dtype), rows)
