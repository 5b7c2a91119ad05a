r"""Averages of weights over training, in place and many tensors at a time."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "decay_of_half_life",
    "ema_update_",
    "half_life_of_decay",
    "interpolate_",
    "latest_mean_",
    "lookahead_",
    "mean_of",
    "mean_update_",
    "warmed_up_decay",
]


@torch.no_grad()
def ema_update_(averages: Sequence[Tensor], values: Sequence[Tensor], decay: float) -> None:
    r"""Moves exponential moving averages toward the values, in place.

    .. math:: a \leftarrow d \, a + (1 - d) \, w

    Args:
        averages: Averages a, floating-point tensors of any shapes; at least one.
        values: Weights w, of the same shapes; lower precisions are converted to that of the averages.
        decay: Decay d, the share of the averages that is kept.

    >>> average = torch.tensor([1.0])
    >>> ema_update_([average], [torch.tensor([2.0])], 0.75)
    >>> average
    tensor([1.2500])
    """
    _lerp_(averages, values, 1 - decay)


@torch.no_grad()
def mean_update_(averages: Sequence[Tensor], values: Sequence[Tensor], count: int) -> None:
    r"""Adds one more value to means of equally weighted values, in place.

    .. math:: a \leftarrow a + (w - a) / (n + 1)

    Args:
        averages: Averages a of n values; at least one tensor.
        values: Weights w, of the same shapes; lower precisions are converted to that of the averages.
        count: Number n of values so far, at least 1.

    >>> mean = torch.tensor([1.0])
    >>> mean_update_([mean], [torch.tensor([4.0])], 2)
    >>> mean
    tensor([2.])
    """
    _lerp_(averages, values, 1 / (count + 1))


@torch.no_grad()
def interpolate_(averages: Sequence[Tensor], starts: Sequence[Tensor], ends: Sequence[Tensor], alpha: float) -> None:
    r"""Writes the interpolation of two sets of weights, in place; bitwise equal to one of them at either end.

    .. math:: a \leftarrow (1 - \alpha) \, \theta_0 + \alpha \, \theta_1

    Args:
        averages: Averages a, floating-point tensors of any shapes; at least one.
        starts: Weights θ₀, of the same shapes; lower precisions are converted to that of the averages.
        ends: Weights θ₁, likewise.
        alpha: Position α between the two, in [0, 1].

    >>> between = torch.tensor([9.0])
    >>> interpolate_([between], [torch.tensor([0.0])], [torch.tensor([4.0])], 0.25)
    >>> between
    tensor([1.])
    """
    torch._foreach_copy_(list(averages), list(starts))
    _lerp_(averages, ends, alpha)


@torch.no_grad()
def mean_of(values: Sequence[Tensor]) -> Tensor:
    r"""Returns the mean of weights, computed in 64 bits and rounded once.

    .. math:: \frac{1}{K} \sum_k w_k

    Args:
        values: K floating-point or complex tensors w of one shape, at least one.

    >>> mean_of([torch.tensor([1.0]), torch.tensor([2.0])])
    tensor([1.5000])
    """
    wide = torch.complex128 if values[0].is_complex() else torch.float64
    total = values[0].to(wide, copy=True)
    for value in values[1:]:
        total += value
    return (total / len(values)).to(values[0].dtype)


@torch.no_grad()
def latest_mean_(averages: Sequence[Tensor], latest: Sequence[Sequence[Tensor]]) -> None:
    r"""Writes the mean of several values into averages.

    .. math:: a \leftarrow \frac{1}{K} \sum_k w_k

    The mean is recomputed rather than updated, so that rounding errors don't accumulate over training.

    Args:
        averages: Averages a, floating-point tensors of any shapes; at least one.
        latest: K lists of weights w, of the same shapes; lower precisions are converted to that of the averages.

    Reference:
        Jean Kaddour: Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight Averaging,
        2022, arXiv:2209.14981.

    >>> mean = torch.tensor([9.0])
    >>> latest_mean_([mean], [[torch.tensor([1.0])], [torch.tensor([4.0])]])
    >>> mean
    tensor([2.5000])
    """
    averages = list(averages)
    torch._foreach_copy_(averages, list(latest[0]))
    for values in latest[1:]:
        torch._foreach_add_(averages, _read(averages, values))
    torch._foreach_div_(averages, len(latest))


@torch.no_grad()
def lookahead_(slow: Sequence[Tensor], fast: Sequence[Tensor], alpha: float) -> None:
    r"""Moves slow weights toward fast ones, and sets the fast ones to the slow ones; in place.

    .. math:: \phi \leftarrow \phi + \alpha (\theta - \phi), \quad \theta \leftarrow \phi

    Args:
        slow: Slow weights φ; at least one tensor.
        fast: Fast weights θ, of the same shapes; lower precisions are converted to that of the slow ones.
        alpha: Step size α of the slow weights, as a fraction of the way.

    Reference:
        Michael R. Zhang, James Lucas, Geoffrey Hinton, Jimmy Ba: Lookahead Optimizer: k steps forward, 1 step back,
        NeurIPS 2019, arXiv:1907.08610.

    >>> slow, fast = torch.tensor([0.0]), torch.tensor([4.0])
    >>> lookahead_([slow], [fast], 0.5)
    >>> slow, fast
    (tensor([2.]), tensor([2.]))
    """
    _lerp_(slow, fast, alpha)
    torch._foreach_copy_(list(fast), list(slow))


def _lerp_(averages: Sequence[Tensor], values: Sequence[Tensor], weight: float) -> None:
    torch._foreach_lerp_(list(averages), _read(averages, values), weight)


def _read(averages: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    # For many small tensors, a cast to their own dtype takes as long as the rest.
    pairs = zip(averages, values, strict=True)
    return [value if value.dtype == average.dtype else value.to(average.dtype) for average, value in pairs]


def warmed_up_decay(decay: float, updates: int) -> float:
    r"""Returns a decay that starts small, so that early averages forget the initial weights.

    .. math:: \min\left(d, \frac{1 + n}{10 + n}\right)

    Args:
        decay: Final decay d.
        updates: Number n of updates before this one.

    Reference:
        tf.train.ExponentialMovingAverage of TensorFlow.

    >>> warmed_up_decay(0.999, 1), warmed_up_decay(0.999, 100_000)
    (0.18181818181818182, 0.999)
    """
    return min(decay, (1 + updates) / (10 + updates))


def decay_of_half_life(half_life: float) -> float:
    r"""Returns the decay with a given half-life.

    .. math:: d = 2^{-1/h}

    Args:
        half_life: Half-life h in updates, after which a value's weight has halved; at 0 nothing is kept.

    >>> decay_of_half_life(1.0)
    0.5
    """
    return float(0.5 ** (1 / half_life)) if half_life else 0.0


def half_life_of_decay(decay: float) -> float:
    r"""Returns the half-life of a decay: the number of updates after which a value's weight has halved.

    .. math:: h = -1 / \log_2 d

    Args:
        decay: Decay d, in (0, 1).

    >>> round(half_life_of_decay(0.999), 1)
    692.8
    """
    return -1 / math.log2(decay)
