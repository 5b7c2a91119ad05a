"""Sums over a batch of activations, which can be accumulated over batches, calls and processes."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_reg.functional.measures.histograms import wide_dtype

__all__ = ["UnitSums", "unit_rows", "unit_sums"]

# Number of elements processed at a time on a CPU: block and buffers stay in the cache, so that memory is read once.
_BLOCK = 262_144


class UnitSums(NamedTuple):
    """Sums over the values of each unit (a channel, a feature), and counts over all.

    Attributes:
        number: (), number of values.
        sums: (C,), sums of the values.
        squares: (C,), sums of their squares.
        zeros: (C,), numbers of values that are exactly zero.
        near_zero: (), number of values below the threshold in absolute value, exact zeros included.
        saturated: (), number of saturated values.
    """

    number: Tensor
    sums: Tensor
    squares: Tensor
    zeros: Tensor
    near_zero: Tensor
    saturated: Tensor


def unit_rows(activations: Tensor, unit_dim: int) -> tuple[Tensor, bool]:
    """Returns activations as a matrix, without a copy where strides allow it, and whether units are in its rows.

    Args:
        activations: Tensor of at least one dimension.
        unit_dim: Dimension of the units.

    Returns:
        Either (N·C, L) and True, with a row for each sample and unit, or (R, C) and False, with a column for each unit.

    >>> unit_rows(torch.zeros(2, 3, 4, 4), 1)[0].shape, unit_rows(torch.zeros(2, 4, 3), -1)[0].shape
    (torch.Size([6, 16]), torch.Size([8, 3]))
    """
    behind = activations.shape[unit_dim % activations.ndim + 1 :].numel()
    if behind > 1 and activations.is_contiguous():
        return activations.view(-1, behind), True
    # Without a copy also for maps in the channels-last format.
    moved = activations.movedim(unit_dim, -1)
    return moved.reshape(moved.shape[:-1].numel(), moved.shape[-1]), False


@torch.no_grad()
def unit_sums(
    activations: Tensor,
    unit_dim: int,
    *,
    near_zero: float = 1e-3,
    low: float | None = None,
    high: float | None = None,
) -> UnitSums:
    r"""Returns the sums from which mean, standard deviation, zeros and dead units follow.

    Per unit :math:`\sum a`, :math:`\sum a^2` and the number of exact zeros; over all units the number of
    :math:`|a| < \epsilon`, and of saturated values. Everything is computed in one read of memory: on a CPU in blocks
    that stay in the cache, elsewhere (and in compiled code) in operations that a compiler fuses.

    Args:
        activations: Floating-point tensor of at least one dimension; sums are computed in float32.
        unit_dim: Dimension of the units.
        near_zero: Threshold ε, above 0.
        low: Upper bound of values that count as saturated; None for no bound.
        high: Lower bound of values that count as saturated; None for no bound.

    >>> sums = unit_sums(torch.tensor([[0.0, 1.0], [0.0, 3.0]]), 1)
    >>> sums.sums, sums.zeros
    (tensor([0., 4.], dtype=torch.float64), tensor([2., 0.], dtype=torch.float64))
    """
    rows, by_row = unit_rows(activations.detach(), unit_dim)
    units = activations.shape[unit_dim]
    wide = wide_dtype(rows.device)
    if rows.device.type == "cpu" and not torch.compiler.is_compiling():
        sums, squares, zeros, near, saturated = _in_blocks(rows, by_row, near_zero, low, high)
    else:
        sums, squares, zeros, near, saturated = _at_once(rows.float(), by_row, near_zero, low, high)

    def per_unit(values: Tensor) -> Tensor:
        return values.view(-1, units).sum(0, dtype=wide) if by_row else values.to(wide)

    number = torch.full((), rows.numel(), dtype=wide, device=rows.device)
    return UnitSums(number, per_unit(sums), per_unit(squares), per_unit(zeros), near.to(wide), saturated.to(wide))


def _at_once(
    rows: Tensor, by_row: bool, near_zero: float, low: float | None, high: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dim = 1 if by_row else 0
    saturated = rows.new_zeros(())
    if high is not None:
        saturated = saturated + (rows >= high).sum()
    if low is not None:
        saturated = saturated + (rows <= low).sum()
    return rows.sum(dim), rows.square().sum(dim), (rows == 0).sum(dim), (rows.abs() < near_zero).sum(), saturated


def _in_blocks(
    rows: Tensor, by_row: bool, near_zero: float, low: float | None, high: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    length = max(1, _BLOCK // max(rows.shape[1], 1))
    buffer = torch.empty(min(length, max(len(rows), 1)), rows.shape[1], dtype=torch.float32)
    # Each row has its own result; columns are accumulated.
    results = len(rows) if by_row else rows.shape[1]
    sums, squares, zeros = (torch.zeros(results, dtype=torch.float32) for _ in range(3))
    near, saturated = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for start in range(0, len(rows), length):
        block = rows[start : start + length].float()
        # Comparisons that write floats, and sums of floats, are several times as fast as counting bools.
        flags = buffer[: len(block)]
        if by_row:
            part = slice(start, start + length)
            torch.sum(block, 1, out=sums[part])
            torch.linalg.vector_norm(block, dim=1, out=squares[part])
            torch.sum(torch.eq(block, 0, out=flags), 1, out=zeros[part])
        else:
            sums.add_(block.sum(0))
            squares.add_(torch.mul(block, block, out=flags).sum(0))
            zeros.add_(torch.eq(block, 0, out=flags).sum(0))
        near += torch.abs(block, out=flags).lt_(near_zero).sum()
        if high is not None:
            saturated += torch.ge(block, high, out=flags).sum()
        if low is not None:
            saturated += torch.le(block, low, out=flags).sum()
    if by_row:
        squares.square_()
    return sums, squares, zeros, near, saturated
