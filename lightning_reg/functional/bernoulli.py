"""Bernoulli numbers and random signs on the CPU, several from each number of a generator."""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["bernoulli_int16", "is_faster", "random_signs"]

_FEWEST = 2**14  # fewer are drawn by torch, which needs fewer calls for them
_RARE = 1 / 64  # below it, it is cheaper to draw the distances between the rarer values
_RAREST = 2.0**-30  # below it, torch's geometric distribution runs out of digits
_LEVELS = 2**16
_INTEGERS = {16: torch.int16, 32: torch.int32, 64: torch.int64}
_MANY = 2**14  # from here on, NumPy's SFC64 is faster than torch's Mersenne Twister, construction included


def bernoulli_int16(numel: int, p: float, generator: torch.Generator | None = None) -> Tensor:
    r"""Returns ones, with probability ``p``, and zeros, independent of one another, (numel,) of int16 on the CPU.

    Each 64-bit random number decides four of them: one is 1 where its 16 bits, as a number u in [0, 65536), are below a
    threshold t. The probability is exactly ``p``, because t itself is drawn, once for all of them:

    .. math::
        m_i = [u_i < t], \quad t = \lfloor 65536 \, p \rfloor + b, \quad
        b \sim \mathrm{Bernoulli}(65536 \, p - \lfloor 65536 \, p \rfloor)

    Sharing t gives two of them a correlation of at most 4e-9. Values rarer than 1 in 64 are placed by their distances,
    which are geometrically distributed. Small numbers of values are drawn by torch itself.

    Args:
        numel: Number of values to draw.
        p: Probability of a 1, in [0, 1].
        generator: Source of random numbers; torch's global stream where None.

    >>> bernoulli_int16(3, 1.0)
    tensor([1, 1, 1], dtype=torch.int16)
    """
    if not is_faster(numel, p):
        return torch.empty(numel, dtype=torch.int16).bernoulli_(p, generator=generator)
    if min(p, 1 - p) < _RARE:
        return _by_distances(numel, p, generator)
    words = _words(-(-numel // 4) + 1, generator)  # one more than needed, for the threshold
    threshold, rest = divmod(p * _LEVELS, 1)
    threshold += (words[-1].item() + 2**63) / 2**64 < rest
    return words.view(torch.int16)[:numel].lt_(int(threshold) - _LEVELS // 2)


def random_signs(numel: int, dtype: torch.dtype, generator: torch.Generator | None = None) -> Tensor:
    """Returns floats of random bits whose signs are independent and equally probable, (numel,) on the CPU.

    Each bit of a 64-bit random number is one sign. Only the signs are meaningful, as for :func:`torch.copysign`.

    Args:
        numel: Number of signs to draw.
        dtype: Real floating dtype of 16, 32 or 64 bits.
        generator: Source of random numbers; torch's global stream where None.

    >>> random_signs(3, torch.float32).shape
    torch.Size([3])
    """
    bits = 8 * dtype.itemsize
    words = _words(-(-numel // 64), generator).view(_INTEGERS[bits])
    shifts = torch.arange(bits, dtype=words.dtype).unsqueeze(1)
    return (words << shifts).view(dtype).flatten()[:numel]


def is_faster(numel: int, p: float) -> bool:
    """Whether :func:`bernoulli_int16` has a faster method than torch.

    Args:
        numel: Number of values to draw.
        p: Probability of a 1.
    """
    rare = min(p, 1 - p)
    return numel >= (_FEWEST if rare >= _RARE else 4 * _FEWEST) and rare >= _RAREST and not _draws_in_threads()


def _words(count: int, generator: torch.Generator | None) -> Tensor:
    """Returns 64-bit random numbers, (count,): many come from a faster generator with a seed drawn from this one."""
    if count < _MANY:
        # Without bounds it would draw 63 bits, and every fourth 16-bit lane would be biased.
        return torch.empty(count, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    seed = torch.empty((), dtype=torch.int64).random_(generator=generator).item()
    return torch.from_numpy(np.random.SFC64(int(seed)).random_raw(count).view(np.int64))


def _by_distances(numel: int, p: float, generator: torch.Generator | None) -> Tensor:
    rare = min(p, 1 - p)
    drawn = torch.full((numel,), int(p > 0.5), dtype=torch.int16)
    last, chunk = -1.0, _nearly_always_enough(numel * rare)
    while last < numel - 1:
        # In float64, which represents the sums exactly.
        distances = torch.empty(chunk, dtype=torch.float64).geometric_(rare, generator=generator)
        places = distances.cumsum(0).add_(last)
        last = places[-1].item()
        drawn[places[places < numel].long()] = int(p <= 0.5)
    return drawn


def _nearly_always_enough(expected: float) -> int:
    return int(expected + 4 * math.sqrt(expected)) + 1


@lru_cache(maxsize=1)
def _draws_in_threads() -> bool:
    """Whether torch takes one number of the generator as a seed, and draws all values in threads with MKL.

    It does on Intel's CPUs; the state of the generator afterwards shows it.
    """
    one, eight = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    torch.empty(1).bernoulli_(0.5, generator=one)
    torch.empty(8).bernoulli_(0.5, generator=eight)
    return torch.equal(one.get_state(), eight.get_state())
