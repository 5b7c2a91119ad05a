"""Signs of overfitting and underfitting in learning curves."""

import math
from collections.abc import Sequence

__all__ = [
    "generalization_gap",
    "is_underfitting",
    "is_unfinished",
    "lowest",
    "memorization_start",
    "overfitting_start",
    "smoothed",
]


def generalization_gap(train: float, validation: float, *, lower_is_better: bool = True) -> float:
    r"""Returns the generalization gap: how much worse a metric is in validation than in training.

    .. math::
        g = \begin{cases} m_{val} - m_{train} & \text{where lower is better} \\ m_{train} - m_{val} & \text{else}
        \end{cases}

    Args:
        train: Metric on training data.
        validation: The same metric on validation data.
        lower_is_better: Whether the metric is a loss or an error.

    >>> generalization_gap(0.75, 0.5, lower_is_better=False)
    0.25
    """
    return validation - train if lower_is_better else train - validation


def overfitting_start(
    train: Sequence[float], validation: Sequence[float], *, patience: int = 3, tolerance: float = 0.05
) -> int | None:
    """Returns the index from which the validation loss rises while the training loss goes on falling.

    This follows the lowest validation loss, if at least ``patience`` measurements come after it, the mean of the last
    ``patience`` exceeds it by more than a share ``tolerance``, and that of the training loss is below its value there.

    Args:
        train: Loss on training data, measurement by measurement.
        validation: Loss on validation data, at the same times.
        patience: Number of measurements that have to follow, at least 1.
        tolerance: Share of the lowest loss that counts as noise, at least 0.

    Returns:
        Index of the first measurement after the lowest; None where it didn't rise.

    >>> overfitting_start([0.5, 0.4, 0.3, 0.2, 0.1], [0.6, 0.5, 0.6, 0.7, 0.8])
    2
    """
    best = lowest(validation)
    if best is None or len(validation) - 1 - best < patience:
        return None
    rises = _mean(validation[-patience:]) > validation[best] + tolerance * abs(validation[best])
    falls = _mean(train[-patience:]) < train[best]
    return best + 1 if rises and falls else None


def memorization_start(
    train: Sequence[float], validation: Sequence[float], *, high: float = 0.99, apart: float = 0.05
) -> int | None:
    """Returns the index from which training accuracy is near 1 and far above validation accuracy.

    Args:
        train: Accuracy on training data, in [0, 1], measurement by measurement.
        validation: Accuracy on validation data, at the same times.
        high: Smallest accuracy that counts as near 1.
        apart: Difference above which training accuracy is far above validation accuracy.

    Returns:
        Index of the first measurement from which this holds to the end; None where it doesn't hold at the end.

    >>> memorization_start([0.9, 1.0, 1.0], [0.8, 0.9, 0.9])
    1
    """
    start = None
    for index, (trained, held_out) in enumerate(zip(train, validation, strict=True)):
        holds = trained >= high and trained - held_out > apart
        start = (index if start is None else start) if holds else None
    return start


def is_underfitting(
    train: Sequence[float],
    validation: Sequence[float],
    train_accuracy: Sequence[float] = (),
    *,
    low: float = 0.7,
    flat: float = 0.1,
) -> bool:
    """Whether a model fits the training data badly, and validation data not much worse.

    Badly means that its accuracy ends below ``low`` or, without one, that its loss has fallen by less than ``flat``.

    Args:
        train: Loss on training data, measurement by measurement.
        validation: Loss on validation data, at the same times.
        train_accuracy: Accuracy on training data, in [0, 1]; empty if there is none.
        low: Accuracy below which a fit is bad.
        flat: Share of the loss below which a change, or a gap, counts as none.

    >>> is_underfitting([2.3, 2.29, 2.28], [2.3, 2.3, 2.29])
    True
    """
    if len(train) < (1 if train_accuracy else 2):
        return False
    fits_badly = train_accuracy[-1] < low if train_accuracy else train[0] - train[-1] < flat * abs(train[0])
    return fits_badly and validation[-1] - train[-1] < flat * abs(train[-1])


def is_unfinished(validation: Sequence[float], *, patience: int = 3) -> bool:
    """Whether the validation loss was lowest at the very end, so that it may go on falling.

    Args:
        validation: Loss on validation data, measurement by measurement.
        patience: Number of measurements that have to come before.

    >>> is_unfinished([0.9, 0.7, 0.6, 0.5])
    True
    """
    return len(validation) > patience and lowest(validation) == len(validation) - 1


def lowest(values: Sequence[float]) -> int | None:
    """Returns the index of the lowest value, the first one where there are several; None where none is finite.

    Args:
        values: One value per measurement, in order.

    >>> lowest([math.nan, 0.5, 0.4])
    2
    """
    finite = [index for index, value in enumerate(values) if math.isfinite(value)]
    return min(finite, key=lambda index: values[index], default=None)


def smoothed(average: float, value: float, count: int, smoothing: float) -> tuple[float, float]:
    r"""Updates an exponential moving average of a curve with a value.

    .. math:: m_t = \beta m_{t-1} + (1 - \beta) v_t, \qquad \hat{m}_t = m_t / (1 - \beta^t)

    Args:
        average: Average m of the previous values; 0 if there are none.
        value: New value v.
        count: Number t of values including this one, at least 1.
        smoothing: Decay β, in [0, 1).

    Returns:
        The average m, and its bias-corrected value, a weighted mean of the values.

    >>> smoothed(0.0, 4.0, 1, 0.5)
    (2.0, 4.0)
    """
    average = smoothing * average + (1 - smoothing) * value
    return average, average / (1 - smoothing**count)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
