"""Thresholds of gradient clipping adapted to past norms; their state is tensors on the device."""

import torch
from torch import Tensor

__all__ = ["percentile_threshold", "remember_", "zscore_thresholds_"]


def percentile_threshold(history: Tensor, percentile: float) -> Tensor:
    """Returns a percentile of the norms remembered so far.

    Args:
        history: (N,), past norms, NaN in unused entries.
        percentile: Percentile in [0, 100]; values between two norms are interpolated.

    Returns:
        A scalar tensor; infinity while there is no history.

    Reference:
        Prem Seetharaman, Gordon Wichern, Bryan Pardo, Jonathan Le Roux: AutoClip: Adaptive Gradient Clipping for Source
        Separation Networks, MLSP 2020, arXiv:2007.14469.

    >>> percentile_threshold(torch.tensor([3.0, 1.0, 2.0, float("nan")]), 50)
    tensor(2.)
    """
    return torch.nanquantile(history, percentile / 100).nan_to_num(nan=torch.inf)


@torch.no_grad()
def remember_(history: Tensor, count: Tensor, norm: Tensor) -> None:
    """Writes a norm into a ring buffer of the last N, in place; one that isn't finite is skipped.

    Args:
        history: (N,), ring buffer, NaN at the start.
        count: Integer scalar, the number of norms written so far, 0 at the start.
        norm: Norm of this step, a scalar tensor.

    >>> history, count = torch.full((2,), torch.nan), torch.tensor(0)
    >>> for norm in (1.0, float("inf"), 2.0, 3.0):
    ...     remember_(history, count, torch.tensor(norm))
    >>> history
    tensor([3., 2.])
    """
    finite = norm.isfinite()
    place = (count % len(history)).view(1)
    history.scatter_(0, place, torch.where(finite, norm, history.gather(0, place)))
    count += finite


@torch.no_grad()
def zscore_thresholds_(
    moments: Tensor, norm: Tensor, *, z_threshold: float, alpha: float, warmup_steps: int
) -> tuple[Tensor, Tensor]:
    r"""Returns the norm that an outlier is clipped to, and updates the running moments in place.

    .. math::
        z = \frac{\lVert g \rVert - \mu}{\sigma}, \qquad
        \lVert g \rVert^* = \begin{cases} \mu + \sigma z_\tau^2 / z & z > z_\tau \\ \lVert g \rVert & \text{else}
        \end{cases}

        \mu \leftarrow \alpha \mu + (1 - \alpha) \lVert g \rVert^*, \qquad
        \sigma^2 \leftarrow \alpha \sigma^2 + (1 - \alpha) (\lVert g \rVert^* - \mu)^2

    During warm-up nothing is clipped, and the moments are the mean and the variance of the norms so far. Norms that
    aren't finite are skipped.

    Args:
        moments: (3,), number of norms seen during warm-up, μ and σ²; zeros at the start.
        norm: Norm ‖g‖ of this step, a scalar tensor.
        z_threshold: Threshold z_τ on the z-score, positive or infinity.
        alpha: Decay of the moments, in [0, 1).
        warmup_steps: Number of steps without clipping at the start, at least 1.

    Returns:
        Two scalars: the norm above which gradients are clipped, μ + σ z_τ (infinity during warm-up), and the norm
        that these gradients are clipped to.

    Reference:
        Abhay Kumar, Louis Owen, Nilabhra Roy Chowdhury, Fabian Güra: ZClip: Adaptive Spike Mitigation for LLM
        Pre-Training, 2025, arXiv:2504.02507.

    >>> moments = torch.tensor([25.0, 1.0, 0.04])
    >>> zscore_thresholds_(moments, torch.tensor(2.0), z_threshold=2.5, alpha=0.97, warmup_steps=25)
    (tensor(1.5000), tensor(1.2500))
    """
    seen, mean, variance = moments.unbind()
    warm = seen >= warmup_steps
    deviation = variance.sqrt()
    z = (norm - mean) / deviation.clamp(min=1e-6)
    is_outlier = warm & (z > z_threshold)
    target = torch.where(is_outlier, mean + deviation * z_threshold**2 / z, norm)

    running_mean = alpha * mean + (1 - alpha) * target
    running_variance = alpha * variance + (1 - alpha) * (target - running_mean).square()
    first_mean = mean + (norm - mean) / (seen + 1)
    first_variance = (seen * variance + (norm - mean) * (norm - first_mean)) / (seen + 1)
    updated = torch.stack(
        [
            (seen + 1).clamp(max=warmup_steps),
            torch.where(warm, running_mean, first_mean),
            torch.where(warm, running_variance, first_variance),
        ]
    )
    clips = warm & (z_threshold != torch.inf)  # by which a deviation of 0 would be NaN
    trigger = torch.where(clips, mean + deviation * z_threshold, torch.inf)
    moments.copy_(torch.where(norm.isfinite(), updated, moments))
    return trigger, target
