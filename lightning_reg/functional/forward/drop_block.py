r"""DropBlock: drops neighboring units of a feature map together, at exactly the given rate.

A seed may lie anywhere in the map, and drops the block of side b around it, clipped at the border. A position x that
n(x) seeds would cover is kept with probability (1 − γ)^n(x), fewer at the border than in the middle. So the rate γ of
seeds is the one for which the mean of 1 − (1 − γ)^n(x) over all positions is p, for this size of map.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["drop_block", "seed_rate"]


def drop_block(inputs: Tensor, seeds: Tensor, block_size: int, gamma: float | Tensor) -> Tensor:
    r"""Drops the block around every seed and divides each kept unit by its probability of being kept.

    .. math::
        y_x = \frac{m_x \, i_x}{(1 - \gamma)^{n(x)}}, \quad m_x = \prod_{s \in B(x)} (1 - z_s), \quad n(x) = |B(x)|

    where B(x) is the set of positions whose blocks cover x.

    Args:
        inputs: (N, C, ...), inputs i with one to three dimensions of positions.
        seeds: Seeds z (bools, or numbers 1 and 0), of the inputs' shape; or (N, 1, ...) for the same blocks in all
            channels.
        block_size: Side b of a block, at least 1; if it is even, the larger half lies after the seed.
        gamma: Probability γ of a seed, from :func:`seed_rate`; a number or a scalar tensor.

    Returns:
        A tensor of the inputs' shape, dtype and memory format, whose expectation is the inputs, unit by unit.

    Reference:
        Golnaz Ghiasi, Tsung-Yi Lin, Quoc V. Le: DropBlock: A regularization method for convolutional networks, NeurIPS
        2018, arXiv:1810.12890. The paper keeps seeds away from the border and divides by the realized share of what is
        kept; both make the rate and the expectation depend on the size of the map.

    >>> seeds = torch.tensor([[[False, False, False, True, False]]])
    >>> drop_block(torch.ones(1, 1, 5), seeds, 2, 0.0)
    tensor([[[1., 1., 1., 0., 0.]]])
    """
    # Bytes are the fastest to combine, and torch converts numbers faster to floats than bools.
    dropped = seeds.to(torch.uint8) if seeds.dtype != torch.bool else seeds.view(torch.uint8)
    real = inputs.real if inputs.is_complex() else inputs
    covering = torch.ones((), dtype=torch.promote_types(real.dtype, torch.float32), device=real.device)
    for dim in range(2, inputs.ndim):
        dropped = _covered(dropped, dim, block_size)
        shape = [-1] + [1] * (inputs.ndim - 1 - dim)
        covering = covering * _covering(inputs.shape[dim], block_size, covering).view(shape)
    log_keep = torch.log1p(-gamma) if isinstance(gamma, Tensor) else math.log1p(-gamma)
    scale = torch.exp(-log_keep * covering)
    return (inputs * (dropped ^ 1).to(scale.dtype).mul_(scale)).to(inputs.dtype)


def _covered(seeds: Tensor, dim: int, block_size: int) -> Tensor:
    """Returns whether a block covers each position, along one dimension.

    Blocks are combined from ones of half their size: a few passes over bytes instead of one for each of b seeds.
    """
    covered = F.pad(seeds, [0, 0] * (seeds.ndim - 1 - dim) + [block_size // 2, (block_size - 1) // 2])
    length = 1
    while length < block_size:
        step = min(length, block_size - length)
        size = covered.shape[dim] - step
        covered = covered.narrow(dim, 0, size) | covered.narrow(dim, step, size)
        length += step
    return covered


def _covering(size: int, block_size: int, like: Tensor) -> Tensor:
    """Returns the number of seeds whose block covers each position, along one dimension."""
    positions = torch.arange(size, device=like.device, dtype=like.dtype)
    first = (positions - block_size // 2).clamp(min=0)
    last = (positions + (block_size - 1) // 2).clamp(max=size - 1)
    return last - first + 1


def seed_rate(sizes: Sequence[int], block_size: int, p: float) -> float | Tensor:
    r"""Returns the probability of a seed at which the share p of a map is dropped in expectation.

    .. math:: \gamma: \quad \frac{1}{|X|} \sum_{x \in X} (1 - \gamma)^{n(x)} = 1 - p

    Args:
        sizes: Lengths of the map's dimensions.
        block_size: Side of a block, at least 1.
        p: Share of units that is dropped, in [0, 1).

    Returns:
        The probability γ; in compiled code, where sizes may be dynamic, a scalar tensor on the CPU.

    >>> round(seed_rate((14, 14), 1, 0.25), 12)
    0.25
    >>> round(seed_rate((14, 14), 7, 0.1), 5)
    0.0028
    """
    if torch.compiler.is_compiling():
        gamma: Tensor = _compiled_seed_rate(list(sizes), block_size, p)
        return gamma
    return _seed_rate(tuple(sizes), block_size, p)


@torch.library.custom_op(
    "lightning_reg::seed_rate", mutates_args=(), schema="(SymInt[] sizes, int block_size, float p) -> Tensor"
)
def _compiled_seed_rate(sizes: Sequence[int], block_size: int, p: float) -> Tensor:
    return torch.tensor(_seed_rate(tuple(sizes), block_size, p), dtype=torch.float64)


@_compiled_seed_rate.register_fake
def _(_sizes: Sequence[int], _block_size: int, _p: float) -> Tensor:
    return torch.empty((), dtype=torch.float64)


@lru_cache(maxsize=1024)
def _seed_rate(sizes: tuple[int, ...], block_size: int, p: float) -> float:
    counts = Counter({1: 1})
    for size in sizes:
        line = Counter(min(size - 1, x + (block_size - 1) // 2) - max(0, x - block_size // 2) + 1 for x in range(size))
        counts = _products(counts, line)
    total = sum(counts.values())
    low, high = 0.0, -math.log1p(-p)  # of -log(1 - γ): every position has at least one seed, so γ is at most p
    while True:
        rate = (low + high) / 2
        if rate in (low, high):
            return -math.expm1(-high)
        kept = sum(many * math.exp(-rate * covering) for covering, many in counts.items()) / total
        low, high = (rate, high) if kept > 1 - p else (low, rate)


def _products(one: Counter[int], other: Counter[int]) -> Counter[int]:
    products: Counter[int] = Counter()
    for a, many in one.items():
        for b, times in other.items():
            products[a * b] += many * times
    return products
