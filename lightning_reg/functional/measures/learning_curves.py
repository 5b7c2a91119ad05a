"""Signs of over- and underfitting in curves of training and validation."""

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
    r"""Returns how much worse validation is than training.

    .. math::
        g = \begin{cases} m_{val} - m_{train} & \text{where lower is better} \\ m_{train} - m_{val} & \text{else}
        \end{cases}

    Args:
        train: A metric on samples that were trained on.
        validation: The same on others.
        lower_is_better: Whether it is a loss or an error.

    >>> generalization_gap(0.75, 0.5, lower_is_better=False)
    0.25
    """
    return validation - train if lower_is_better else train - validation


def overfitting_start(
    train: Sequence[float], validation: Sequence[float], *, patience: int = 3, tolerance: float = 0.05
) -> int | None:
    """Returns where the loss on validation data began to rise while that on training data went on falling.

    That is its lowest point, if at least ``patience`` measurements follow it, the mean of the last ``patience`` lies
    above it by more than a share ``tolerance``, and that of the training loss lies below what it was there.

    Args:
        train: Loss on training data, measurement by measurement.
        validation: Loss on validation data, at the same times.
        patience: How many measurements have to follow, at least 1.
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
    """Returns from where on training accuracy is near 1 and far above that on validation data.

    Args:
        train: Accuracy on training data, in [0, 1], measurement by measurement.
        validation: Accuracy on validation data, at the same times.
        high: Accuracy from which on it is near 1.
        apart: Difference beyond which it is far above.

    Returns:
        Index of the measurement from which on it holds to the end; None where it doesn't hold there.

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
    """Whether a model does badly on what it was trained on, and not much worse on what it wasn't.

    Badly: its accuracy ends below ``low``; where there is none, its loss has fallen by less than a share ``flat``.

    Args:
        train: Loss on training data, measurement by measurement.
        validation: Loss on validation data, at the same times.
        train_accuracy: Accuracy on training data, in [0, 1], if there is one.
        low: Accuracy that counts as bad.
        flat: Share of the loss that counts as no change, and as no gap.

    >>> is_underfitting([2.3, 2.29, 2.28], [2.3, 2.3, 2.29])
    True
    """
    if len(train) < (1 if train_accuracy else 2):
        return False
    fits_badly = train_accuracy[-1] < low if train_accuracy else train[0] - train[-1] < flat * abs(train[0])
    return fits_badly and validation[-1] - train[-1] < flat * abs(train[-1])


def is_unfinished(validation: Sequence[float], *, patience: int = 3) -> bool:
    """Whether the loss on validation data was lowest at the very end, so that it may go on falling.

    Args:
        validation: Loss on validation data, measurement by measurement.
        patience: How many measurements there have to be before.

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
    r"""Takes a value into an exponential moving average of a curve.

    .. math:: m_t = \beta m_{t-1} + (1 - \beta) v_t, \qquad \hat{m}_t = m_t / (1 - \beta^t)

    Args:
        average: m of the values before; 0 where there were none.
        value: v.
        count: t, how many values there are with this one, at least 1.
        smoothing: β, in [0, 1).

    Returns:
        m, and what it is without the zero that it began with, a weighted mean of the values.

    >>> smoothed(0.0, 4.0, 1, 0.5)
    (2.0, 4.0)
    """
    average = smoothing * average + (1 - smoothing) * value
    return average, average / (1 - smoothing**count)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
