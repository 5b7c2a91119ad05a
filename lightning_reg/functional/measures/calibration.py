"""Calibration of predicted probabilities: reliability, and the best temperature."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["best_temperature", "reliability", "scaled_loss"]

_BOUND = 100.0  # of temperatures: if all is right the best one is 0, if all is wrong infinity
_ITERATIONS = 60


def _same(sums: Tensor) -> Tensor:
    return sums


def scaled_loss(
    logits: Tensor, labels: Tensor, temperature: float, *, total: Callable[[Tensor], Tensor] = _same
) -> float:
    r"""Returns the mean negative log-likelihood of logits divided by a temperature.

    Args:
        logits: (N, C), logits z.
        labels: (N,), class indices y.
        temperature: Temperature T, above 0.
        total: Function that sums a tensor over all processes.

    >>> round(scaled_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), 2.0), 4)
    0.3133
    """
    loss = F.cross_entropy(logits.double() / temperature, labels, reduction="sum")
    summed, count = total(torch.stack((loss, loss.new_tensor(len(labels))))).tolist()
    return float(summed / count)


def best_temperature(logits: Tensor, labels: Tensor, *, total: Callable[[Tensor], Tensor] = _same) -> float:
    r"""Returns the temperature with the smallest mean negative log-likelihood.

    .. math:: T = \arg\min_T -\frac{1}{N} \sum_n \log \operatorname{softmax}(z_n / T)_{y_n}

    The loss is convex in β = 1/T, and is minimized by Newton steps in log β within a shrinking bracket.

    Args:
        logits: (N, C), logits z.
        labels: (N,), class indices y.
        total: Function that sums a tensor over all processes.

    Returns:
        The temperature T, about within [0.01, 100]: if every sample is classified correctly the loss has no minimum.

    Reference:
        Chuan Guo, Geoff Pleiss, Yu Sun, Kilian Q. Weinberger: On Calibration of Modern Neural Networks, ICML 2017,
        arXiv:1706.04599.

    >>> logits, labels = torch.tensor([[8.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
    >>> round(best_temperature(logits, labels), 4)  # odds of 3, so that 8 / T = log 3
    7.2819
    """
    logits = logits.double()
    low, high = torch.tensor([1 / _BOUND, _BOUND]).log().tolist()
    place = 0.0
    for _ in range(_ITERATIONS):
        beta = torch.tensor(place).double().exp().item()
        slope, curvature = _derivatives(logits, labels, beta, total)
        low, high = (place, high) if slope < 0 else (low, place)
        # By log β, with the chain rule's β and β².
        bend = beta * slope + beta**2 * curvature
        step = place - beta * slope / bend if bend > 0 else low
        following = step if low < step < high else (low + high) / 2
        if abs(following - place) < 1e-10:
            break
        place = following
    return float(torch.tensor(-place).double().exp())


def _derivatives(logits: Tensor, labels: Tensor, beta: float, total: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Returns the loss's first and second derivative by β: E[z] − z_y, and the variance of z."""
    probabilities = (beta * logits).softmax(1)
    finite = torch.where(probabilities > 0, logits, 0)  # a masked class doesn't contribute
    means = (probabilities * finite).sum(1)
    variances = (probabilities * (finite - means.unsqueeze(1)).square()).sum(1)
    slopes = means - logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    sums = total(torch.stack((slopes.sum(), variances.sum(), slopes.new_tensor(len(labels)))))
    slope, curvature, count = sums.tolist()
    return slope / count, curvature / count


def reliability(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> Tensor:
    """Returns the numbers of a reliability diagram: samples binned by the confidence of their prediction.

    Args:
        probabilities: (N, C), predicted probabilities.
        labels: (N,), class indices.
        bins: Number K of bins of equal width in [0, 1].

    Returns:
        (3, K): number of samples, sum of their confidences, and number of correct ones in each bin; can be summed over
        processes.

    >>> reliability(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([0, 0]), bins=2)
    tensor([[0.0000, 2.0000],
            [0.0000, 1.5000],
            [0.0000, 1.0000]])
    """
    confidence, predicted = probabilities.max(1)
    inner = torch.linspace(0, 1, bins + 1, device=confidence.device, dtype=confidence.dtype)[1:-1]
    place = torch.bucketize(confidence, inner)
    rows = torch.stack((torch.ones_like(confidence), confidence, (predicted == labels).to(confidence)))
    return rows.new_zeros(3, bins).index_add_(1, place, rows)
