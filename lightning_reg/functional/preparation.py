"""Data preparation: statistics of channels, normal scores of columns, one-hot categories."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["channel_mean_and_std", "normal_scores", "one_hot_columns", "quantile_knots"]


def channel_mean_and_std(images: Tensor, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of each channel of byte images, on the scale of [0, 1].

    Exact, and in little memory: bytes have only 256 values, so their counts are sufficient.

    Args:
        images: (N, C, H, W), uint8.
        indices: (M,), indices of the images to use; None for all.

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
    """Returns evenly spaced quantiles of each column, from its smallest value to its largest.

    Args:
        values: (N, D), float64; NaN is ignored, and every column must have another value.
        count: Largest number of quantiles; fewer if there are fewer rows.

    Returns:
        (K, D), ascending.

    >>> quantile_knots(torch.tensor([[3.0], [1.0], [2.0]], dtype=torch.float64)).flatten()
    tensor([1., 2., 3.], dtype=torch.float64)
    """
    steps = torch.arange(max(min(count, len(values)), 2), dtype=values.dtype)
    ladders = []
    for column in values.T:
        ordered = column[~column.isnan()].sort().values  # torch.nanquantile refuses more than 2²⁴ values
        position = steps * (len(ordered) - 1) / steps[-1]  # exact in this order if divisible
        low = position.floor().long()
        high = (low + 1).clamp(max=len(ordered) - 1)
        ladders.append(torch.lerp(ordered[low], ordered[high], position - low))
    return torch.stack(ladders, 1)


def normal_scores(values: Tensor, knots: Tensor) -> Tensor:
    r"""Maps each column to the standard normal distribution by its quantiles.

    .. math:: z = \Phi^{-1}(\hat F(x))

    :math:`\hat F` is piecewise linear between the knots; a value that several knots share gets the middle of their
    ranks. At and beyond the outermost knots, z is ±5.2, where the rank is 10⁻⁷ from 0 or 1.

    Args:
        values: (N, D), float64, without NaN.
        knots: (K, D), ascending quantiles from :func:`quantile_knots`.

    Returns:
        (N, D).

    >>> knots = torch.tensor([[0.0], [1.0], [4.0]], dtype=torch.float64)
    >>> normal_scores(torch.tensor([[1.0], [2.5]], dtype=torch.float64), knots).flatten()
    tensor([0.0000, 0.6745], dtype=torch.float64)
    """
    columns, ladders = values.T.contiguous(), knots.T.contiguous()  # (D, N), (D, K)
    # Where knots are equal, the limits from below and from above differ: their mean is the middle rank.
    rank = (_interpolated(columns, ladders, right=True) + _interpolated(columns, ladders, right=False)) / 2
    scores: Tensor = torch.special.ndtri(rank.clamp(1e-7, 1 - 1e-7))
    return scores.T


def _interpolated(columns: Tensor, ladders: Tensor, *, right: bool) -> Tensor:
    """Returns the rank in [0, 1] of each value among its column's knots."""
    steps = ladders.shape[1] - 1
    upper = torch.searchsorted(ladders, columns, right=right).clamp(1, steps)
    low, high = ladders.gather(1, upper - 1), ladders.gather(1, upper)
    tied = torch.where(columns == low, float(right), (columns > low).to(columns.dtype))
    within = torch.where(high > low, (columns - low) / (high - low), tied)
    rank: Tensor = (upper - 1 + within.clamp(0, 1)) / steps
    return rank


def one_hot_columns(codes: Tensor, cardinalities: Sequence[int]) -> Tensor:
    """Encodes several columns of categories at once, each by a block of zeros with a single 1.

    Args:
        codes: (N, K), integers; those of column k are in [0, cardinalities[k]).
        cardinalities: Number of categories of each of the K columns.

    Returns:
        (N, sum of the cardinalities), float32.

    >>> one_hot_columns(torch.tensor([[1, 0], [0, 2]]), [2, 3])
    tensor([[0., 1., 1., 0., 0.],
            [1., 0., 0., 0., 1.]])
    """
    starts = torch.tensor([0, *cardinalities[:-1]]).cumsum(0).to(codes.device, non_blocking=True)
    encoded = torch.zeros(len(codes), sum(cardinalities), device=codes.device)
    return encoded.scatter_(1, codes + starts, 1.0)
