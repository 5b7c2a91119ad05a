"""Portions of weights that stay in a CPU's cache, so that memory is read and written once."""

from collections.abc import Iterator, Sequence

from torch import Tensor

__all__ = ["BLOCK", "cache_sized"]

BLOCK = 262_144
"""Elements of a portion: three tensors of as many together (3 MB) stay in the cache."""


def cache_sized(tensors: Sequence[Tensor], block: int = BLOCK) -> Iterator[slice]:
    """Yields runs of neighbors that have at most ``block`` elements together; larger tensors one by one.

    Many small tensors are worked on by one call each run, rather than one a tensor, and what is computed in between
    is still in the cache when it is read. Elsewhere than on a CPU, where each call is a launch, there is one run.

    Args:
        tensors: Tensors of any shapes on one device.
        block: Elements of a run.

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
