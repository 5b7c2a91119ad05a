"""Histograms that can be summed, whatever the range of the values: bins by sign, exponent and leading bits."""

import torch
from torch import Tensor

__all__ = ["FINE_BINS", "fine_edges", "fine_histogram", "linear_histogram", "quantiles", "rebinned", "wide_dtype"]

# The first 5 of a float's 23 fraction bits, and 32 of its exponents: bins of 3 % from 2⁻¹⁵ to 2¹⁷.
_LEADING_BITS = 5
_LOWEST = 127 - 15 << _LEADING_BITS
_MAGNITUDES = 32 << _LEADING_BITS
FINE_BINS = 2 * _MAGNITUDES

# Number of elements processed at a time on a CPU, so that intermediate results stay in the cache.
_BLOCK = 131_072


@torch.no_grad()
def fine_histogram(values: Tensor, *, most: int | None = None) -> Tensor:
    """Counts values in the fixed bins of :func:`fine_edges`.

    Histograms of several batches, calls or processes can thus be summed. Zero lies in a bin that begins with it, an
    infinity or a NaN in an outermost one.

    Args:
        values: Floating-point values of any shape.
        most: Approximate number of values to count, evenly spaced, if there are more; each then also counts for those
            left out. The share of a bin then has a standard error of at most 0.5 / √most. None counts all.

    Returns:
        (FINE_BINS,), float64 (float32 where the device has none).

    >>> counts = fine_histogram(torch.tensor([-1.0, 0.0, 0.0, 1.0]))
    >>> counts[FINE_BINS // 2], counts.sum()
    (tensor(2., dtype=torch.float64), tensor(4., dtype=torch.float64))
    """
    flat = values.detach().reshape(-1)
    total = flat.numel()
    stride = 1 if most is None else _stride(total, most)
    bits = flat[::stride].float().contiguous().view(torch.int32)
    magnitudes = bits.bitwise_and(0x7FFFFFFF)
    # -1 below zero (but not for -0), else 0. Selection by a mask would take a CPU longer than all the rest.
    negative = magnitudes.neg().bitwise_and_(bits).bitwise_right_shift_(31)
    bins = magnitudes.bitwise_right_shift_(23 - _LEADING_BITS).sub_(_LOWEST).clamp_(0, _MAGNITUDES - 1)
    bins = bins.bitwise_xor_(negative).add_(_MAGNITUDES)  # of m, -1 - m where it is negative
    if bins.device.type == "cpu" and not torch.compiler.is_compiling():
        counts = torch.bincount(bins, minlength=FINE_BINS).double()
    else:  # bincount synchronizes, and breaks a compiled graph
        counts = torch.zeros(FINE_BINS, dtype=torch.int32, device=bins.device)
        counts = counts.scatter_add(0, bins.long(), torch.ones_like(bins)).to(wide_dtype(bins.device))
    return counts * (total / max(bins.numel(), 1)) if stride > 1 else counts


def wide_dtype(device: torch.device) -> torch.dtype:
    """Returns the dtype for sums over many values: float64 where the device has it, else float32.

    Args:
        device: Device on which the sums are computed.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def _stride(total: int, most: int) -> int:
    """Returns a stride that leaves about ``most`` values, without the small prime factors of feature map sizes."""
    stride = -(-total // most)
    while stride > 1 and any(stride % factor == 0 for factor in (2, 3, 5, 7)):
        stride += 1
    return max(stride, 1)


def fine_edges() -> Tensor:
    """Returns the borders of the bins of :func:`fine_histogram`, (FINE_BINS + 1,), float64.

    >>> fine_edges()[[0, FINE_BINS // 2, -1]]
    tensor([-131072.,       0.,  131072.], dtype=torch.float64)
    """
    steps = torch.arange(1, _MAGNITUDES + 1, dtype=torch.float64)
    per_octave = 1 << _LEADING_BITS
    borders = (steps / per_octave).floor().sub(15).exp2() * (1 + steps.remainder(per_octave) / per_octave)
    return torch.cat([-borders.flip(0), torch.zeros(1, dtype=torch.float64), borders])


def rebinned(counts: Tensor, edges: Tensor) -> Tensor:
    """Returns a fine histogram rebinned to other edges.

    Values are assumed to be spread evenly within a fine bin; exact zeros stay together.

    Args:
        counts: (..., FINE_BINS), from :func:`fine_histogram`.
        edges: (K + 1,), ascending edges. Values outside count in the outermost bins.

    Returns:
        (..., K), float64.

    >>> rebinned(fine_histogram(torch.tensor([-3.0, 0.0, 1.0, 2.0])), torch.tensor([-4.0, 0.0, 4.0]))
    tensor([1., 3.], dtype=torch.float64)
    """
    wide = wide_dtype(counts.device)
    fine, edges = (values.to(wide).to(counts.device, non_blocking=True) for values in (fine_edges(), edges))
    counts = counts.to(wide)
    # The values in the bin that begins at zero are nearly always zero: they count where zero does.
    inner = edges[1:-1]
    last = torch.searchsorted(fine, inner, right=True).clamp(1, FINE_BINS) - 1
    share = ((inner - fine[last]) / (fine[last + 1] - fine[last])).clamp(0, 1)
    share = torch.where((last == FINE_BINS // 2) & (inner > 0), 1.0, share)
    below = counts.cumsum(-1)
    before = (below - counts)[..., last] + counts[..., last] * share
    ends = [torch.zeros_like(below[..., :1]), before, below[..., -1:]]
    return torch.cat(ends, dim=-1).diff(dim=-1)


def quantiles(counts: Tensor, shares: Tensor) -> Tensor:
    """Returns quantiles of the values of a fine histogram, to 3 %.

    Args:
        counts: (FINE_BINS,), from :func:`fine_histogram`.
        shares: (K,), share of the values below each quantile, in [0, 1].

    Returns:
        (K,), float64, centers of bins.

    >>> quantiles(fine_histogram(torch.linspace(0, 1, 1001)), torch.tensor([0.5]))
    tensor([0.4961], dtype=torch.float64)
    """
    fine = fine_edges().to(counts.device)
    below = counts.double().cumsum(0)
    index = torch.searchsorted(below, shares.to(below) * below[-1])
    first = torch.searchsorted(below, below.new_zeros(1), right=True)  # nonempty bin
    index = torch.maximum(index, first).clamp(max=FINE_BINS - 1)
    middle = (fine[index] + fine[index + 1]) / 2
    return torch.where(index == FINE_BINS // 2, 0.0, middle)


@torch.no_grad()
def linear_histogram(values: Tensor, low: Tensor, high: Tensor, bins: int) -> Tensor:
    """Counts values in bins of equal width, without synchronizing with the device.

    Args:
        values: Floating-point values of any shape; those that aren't finite aren't counted.
        low: Smallest value, a scalar tensor.
        high: Largest value, a scalar tensor; if it equals ``low``, all values are in the first bin.
        bins: Number of bins of equal width.

    Returns:
        (bins,), int64.

    >>> values = torch.tensor([0.0, 1.0, 2.0, 4.0])
    >>> linear_histogram(values, values.min(), values.max(), 4)
    tensor([1, 1, 1, 1])
    """
    flat = values.detach().reshape(-1)
    width = high.to(wide_dtype(flat.device)) - low
    scale = torch.where(width > 0, bins / width, 0.0).clamp(max=1e38).float()
    counts = torch.zeros(bins + 2, dtype=torch.int64, device=flat.device)
    on_cpu = flat.device.type == "cpu"
    for block in torch.split(flat, _BLOCK) if on_cpu else [flat]:
        # The largest value is at the end of the last bin, and nonfinite ones are put after it.
        scaled = block.float().sub(low.float()).mul_(scale)
        scaled.nan_to_num_(bins + 1, posinf=bins + 1, neginf=bins + 1)
        if on_cpu:
            counts += torch.bincount(scaled.to(torch.int32), minlength=bins + 2)
        else:  # bincount synchronizes
            counts += torch.histc(scaled.floor_(), bins + 2, 0, bins + 2).to(torch.int64)
    counts[bins - 1] += counts[bins]
    return counts[:bins]
