"""Statistics of tensors."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_reg.functional.histograms import wide_dtype

__all__ = [
    "Summary",
    "channel_mean_and_std",
    "combined",
    "normal_scores",
    "quantile_knots",
    "stable_rank",
    "summarized",
]

# Elements that are worked on at a time on a CPU: block and buffer stay in the cache, so that memory is read once.
_BLOCK = 131_072


def channel_mean_and_std(images: Tensor, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of byte images, on the scale of [0, 1].

    Exact, and in little memory: an image of bytes has at most 256 values, so counts say everything.

    Args:
        images: (N, C, H, W), uint8.
        indices: (M,), which images count; all where None.

    Returns:
        Mean and standard deviation (of the population), (C,) each, float32. A channel that never changes gets a
        standard deviation of 1, so that dividing by it does nothing.

    >>> channel_mean_and_std(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    (tensor([0.5000]), tensor([0.5000]))
    """
    chosen = torch.arange(len(images)) if indices is None else indices
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
    for part in torch.split(chosen, 4096):
        channels = images[part].transpose(0, 1).flatten(1)  # (C, M · H · W)
        counts += torch.stack([torch.bincount(channel, minlength=256) for channel in channels])
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    std = (share * (values - mean.unsqueeze(1)).square()).sum(1).sqrt()
    return mean.float(), torch.where(std > 0, std, 1.0).float()


def quantile_knots(values: Tensor, count: int = 1000) -> Tensor:
    """Evenly spaced quantiles of each column, from its smallest value to its largest.

    Args:
        values: (N, D), float64; NaN is left out, and every column has something else.
        count: How many quantiles at the most; as many as there are rows where that is less.

    Returns:
        (K, D), ascending.

    >>> quantile_knots(torch.tensor([[3.0], [1.0], [2.0]], dtype=torch.float64)).flatten()
    tensor([1., 2., 3.], dtype=torch.float64)
    """
    steps = torch.arange(max(min(count, len(values)), 2), dtype=values.dtype)
    ladders = []
    for column in values.T:
        ordered = column[~column.isnan()].sort().values  # torch.nanquantile refuses more than 2²⁴ values
        position = steps * (len(ordered) - 1) / steps[-1]  # in this order exact where they divide
        low = position.floor().long()
        high = (low + 1).clamp(max=len(ordered) - 1)
        ladders.append(torch.lerp(ordered[low], ordered[high], position - low))
    return torch.stack(ladders, 1)


def normal_scores(values: Tensor, knots: Tensor) -> Tensor:
    r"""Maps each column to the standard normal distribution by its quantiles.

    .. math:: z = \Phi^{-1}(\hat F(x))

    :math:`\hat F` is piecewise linear between the knots; a value that several knots share gets the middle of their
    ranks. Beyond the outermost knots, and at them, z stops at ±5.2, where the rank is 10⁻⁷ from 0 or 1.

    Args:
        values: (N, D), float64, without NaN.
        knots: (K, D), ascending, see :func:`quantile_knots`.

    Returns:
        (N, D).

    >>> knots = torch.tensor([[0.0], [1.0], [4.0]], dtype=torch.float64)
    >>> normal_scores(torch.tensor([[1.0], [2.5]], dtype=torch.float64), knots).flatten()
    tensor([0.0000, 0.6745], dtype=torch.float64)
    """
    columns, ladders = values.T.contiguous(), knots.T.contiguous()  # (D, N), (D, K)
    # Where knots are equal, coming from below and from above give different ranks: their mean is the middle.
    rank = (_interpolated(columns, ladders, right=True) + _interpolated(columns, ladders, right=False)) / 2
    scores: Tensor = torch.special.ndtri(rank.clamp(1e-7, 1 - 1e-7))
    return scores.T


def _interpolated(columns: Tensor, ladders: Tensor, *, right: bool) -> Tensor:
    """Rank in [0, 1] of each value among its column's knots."""
    steps = ladders.shape[1] - 1
    upper = torch.searchsorted(ladders, columns, right=right).clamp(1, steps)
    low, high = ladders.gather(1, upper - 1), ladders.gather(1, upper)
    tied = torch.where(columns == low, float(right), (columns > low).to(columns.dtype))
    within = torch.where(high > low, (columns - low) / (high - low), tied)
    rank: Tensor = (upper - 1 + within.clamp(0, 1)) / steps
    return rank


class Summary(NamedTuple):
    """What a tensor holds, as numbers.

    Attributes:
        number: Number of elements of the tensor.
        mean: Mean of all elements.
        deviations: Sum of their squared deviations from it.
        zeros: How many are exactly zero.
        smallest: The smallest; NaN where there is a NaN.
        largest: The largest; NaN where there is a NaN.
    """

    number: float
    mean: float
    deviations: float
    zeros: float
    smallest: float
    largest: float

    def statistics(self) -> dict[str, float]:
        """Returns mean, standard deviation (of the population), extremes, Euclidean norm and the share of zeros."""
        number = max(self.number, 1.0)
        return {
            "mean": self.mean,
            "std": (self.deviations / number) ** 0.5,
            "min": self.smallest,
            "max": self.largest,
            "norm": (self.deviations + self.number * self.mean**2) ** 0.5,
            "zeros": self.zeros / number,
        }


@torch.no_grad()
def summarized(tensor: Tensor) -> Tensor:
    r"""Returns the numbers of a :class:`Summary`, on the tensor's device.

    Deviations are taken from the mean of each block, and blocks added up by

    .. math:: M = M_a + M_b + (\bar a - \bar b)^2 \frac{n_a n_b}{n_a + n_b}

    so that nothing cancels where the mean is large beside the deviation, as that of a norm's weights is.

    Args:
        tensor: Any shape, floating-point; computed in float32.

    Returns:
        (6,), float64.

    Reference:
        Tony F. Chan, Gene H. Golub, Randall J. LeVeque: Algorithms for Computing the Sample Variance, The American
        Statistician 37, 1983.

    >>> Summary(*summarized(torch.tensor([0.0, 2.0, 4.0])).tolist()).statistics()["mean"]
    2.0
    """
    flat = tensor.detach().reshape(-1)
    if flat.numel() == 0:
        return torch.zeros(len(Summary._fields), dtype=wide_dtype(flat.device), device=flat.device)
    on_cpu = flat.device.type == "cpu"
    blocks = torch.split(flat, _BLOCK) if on_cpu else [flat]
    buffer = torch.empty(min(_BLOCK, flat.numel())) if on_cpu else None
    parts = []
    for block in blocks:
        numbers = block.float()
        # Comparisons that write floats, and sums of floats, are several times as fast as counting what is true.
        scratch = torch.empty_like(numbers) if buffer is None else buffer[: len(numbers)]
        zeros = torch.eq(numbers, 0, out=scratch).sum()
        mean = numbers.mean()
        # Summed by pairs, as torch.dot doesn't.
        deviations = torch.sub(numbers, mean, out=scratch).square_().sum()
        parts.append(torch.stack([mean, deviations, zeros, *torch.aminmax(numbers)]))
    counts = torch.tensor([len(block) for block in blocks], dtype=parts[0].dtype).to(flat.device, non_blocking=True)
    return combined(torch.cat([counts.unsqueeze(1), torch.stack(parts)], dim=1))


def combined(parts: Tensor) -> Tensor:
    """Returns the summary of all from the summaries of parts.

    Args:
        parts: (K, 6), a row a part.

    Returns:
        (6,), float64.

    >>> combined(torch.stack([summarized(torch.tensor([0.0])), summarized(torch.tensor([2.0, 4.0]))]))
    tensor([3., 2., 8., 1., 0., 4.], dtype=torch.float64)
    """
    number, mean, deviations, zeros, smallest, largest = parts.to(wide_dtype(parts.device)).unbind(1)
    total = number.sum()
    middle = (number * mean).sum() / total.clamp(min=1)
    between = (number * (mean - middle).square()).sum()
    return torch.stack([total, middle, deviations.sum() + between, zeros.sum(), smallest.min(), largest.max()])


@torch.no_grad()
def stable_rank(matrix: Tensor, *, iterations: int = 20) -> Tensor:
    r"""The squared Frobenius norm by the squared spectral norm: how many directions a matrix uses.

    .. math:: \frac{\lVert W \rVert_F^2}{\lVert W \rVert_2^2} \in [1, \operatorname{rank} W]

    The spectral norm is found by power iterations from the longest row, without a random number. It is approached from
    below, so the rank from above; by some percent where several singular values are nearly the largest.

    Args:
        matrix: (R, ...), taken as (R, C).
        iterations: Number of power iterations, at least 1.

    Returns:
        A scalar; 0 for a matrix of zeros.

    Reference:
        Mark Rudelson, Roman Vershynin: Sampling from large matrices: an approach through geometric functional analysis,
        Journal of the ACM 54, 2007.

    >>> stable_rank(torch.diag(torch.tensor([2.0, 2.0, 0.0])))
    tensor(2.0000)
    """
    rows = matrix.detach().flatten(1).float()
    tiny = torch.finfo(torch.float32).tiny
    lengths = torch.linalg.vector_norm(rows, dim=1)
    vector = rows.index_select(0, lengths.argmax().unsqueeze(0)).squeeze(0)
    spectral = lengths.new_zeros(())
    for _ in range(iterations):
        image = rows @ (vector / torch.linalg.vector_norm(vector).clamp(min=tiny))
        spectral = torch.linalg.vector_norm(image)
        vector = image @ rows
    ratio = torch.linalg.vector_norm(lengths) / spectral.clamp(min=tiny)
    return torch.square(ratio)
