"""Splits of tensors into portions that fit into a CPU's cache, so that memory is read and written once."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["BLOCK", "cache_sized", "portions"]

BLOCK = 262_144
"""Number of elements of a portion: three float32 tensors of it (3 MB) fit into the cache."""


def cache_sized(tensors: Sequence[Tensor], block: int = BLOCK) -> Iterator[slice]:
    """Yields slices of consecutive tensors with at most ``block`` elements together; larger tensors one by one.

    Many small tensors are then processed by one call per run, rather than per tensor, and intermediate results are
    still in the cache when they are read. Other devices than CPUs, where each call is a kernel launch, get one run.

    Args:
        tensors: Tensors of any shapes on one device.
        block: Largest number of elements of a run.

    >>> import torch
    >>> list(cache_sized([torch.zeros(2), torch.zeros(2), torch.zeros(9), torch.zeros(1)], block=4))
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    if any(tensor.device.type != "cpu" for tensor in tensors):
        yield slice(0, len(tensors))
        return
    start = elements = 0
    for index, tensor in enumerate(tensors):
        size = tensor.numel()
        if index > start and elements + size > block:
            yield slice(start, index)
            start, elements = index, 0
        elements += size
    if tensors:
        yield slice(start, len(tensors))


def portions(*tensors: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Yields runs of tensors as :func:`cache_sized` does, and a large tensor in pieces of ``BLOCK`` elements.

    Args:
        tensors: Lists of equal length, with tensors of equal shape at the same position, for elementwise operations.

    >>> weights, kept = [torch.zeros(2), torch.zeros(BLOCK + 1)], [torch.ones(2), torch.ones(BLOCK + 1)]
    >>> [[len(piece) for piece in pieces] for pieces, _ in portions(weights, kept)]
    [[2], [262144], [1]]
    """
    for part in cache_sized(tensors[0]):
        runs = [list(values[part]) for values in tensors]
        firsts = [run[0] for run in runs]
        if len(runs[0]) == 1 and all(first.device.type == "cpu" and first.is_contiguous() for first in firsts):
            for pieces in zip(*(torch.split(first.view(-1), BLOCK) for first in firsts), strict=True):
                yield tuple([piece] for piece in pieces)
        else:
            yield tuple(runs)
