"""Signs of over- and underfitting, in words, from the curves of a fit."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lightning_reg.core.metric_names import is_accuracy
from lightning_reg.functional.measures.learning_curves import (
    generalization_gap,
    is_underfitting,
    is_unfinished,
    lowest,
    memorization_start,
    overfitting_start,
)
from lightning_reg.text import table

__all__ = ["Curves", "Signal", "find_signals", "summary_lines"]

_MANY_WEIGHTS = 10  # for each sample
_WIDTH = 100


@dataclass(frozen=True)
class Curves:
    """Measured curves.

    Attributes:
        epochs: Epochs of the measurements, counted from 0.
        train: Curves on training data, by metric; as long as ``epochs``.
        validation: The same on validation data.
    """

    epochs: Sequence[int]
    train: Mapping[str, Sequence[float]]
    validation: Mapping[str, Sequence[float]]
    lower_is_better: Mapping[str, bool]

    @property
    def loss(self) -> str | None:
        """Name of the loss: ``"loss"`` if there is one, else the first metric that is better where it is lower."""
        lower = [name for name in self.validation if self.lower_is_better[name]]
        return "loss" if "loss" in lower else next(iter(lower), None)

    @property
    def accuracy(self) -> str | None:
        """Name of the first metric that is an accuracy, in [0, 1]."""
        return next(
            (
                name
                for name, values in self.train.items()
                if is_accuracy(name) and all(0 <= value <= 1 for value in values)
            ),
            None,
        )

    @property
    def best(self) -> int:
        """Index of the measurement with the lowest loss on validation data; the last where there is no loss."""
        index = lowest(self.validation[self.loss]) if self.loss is not None else None
        return len(self.epochs) - 1 if index is None else index


@dataclass(frozen=True)
class Signal:
    """A sign of over- or underfitting.

    Attributes:
        epoch: Epoch in which it began, counted from 0.
        text: Description of the sign, and a remedy.
    """

    name: str
    epoch: int
    text: str

    def __str__(self) -> str:
        when = f"epoch {self.epoch} on" if self.epoch else "the start"
        return f"{self.name} from {when}: {self.text}"


def find_signals(curves: Curves, *, weights: int, samples: int | None, patience: int) -> list[Signal]:
    """Returns the signs of over- and underfitting, those of losses first.

    Args:
        curves: Curves with at least one measurement.
        weights: Number of trainable weights.
        samples: Number of training samples; None where it isn't known.
        patience: Measurements without an improvement after which the loss counts as rising.
    """
    return [*_of_loss(curves, patience), *_of_accuracy(curves), *_of_size(weights, samples)]


def _of_loss(curves: Curves, patience: int) -> Iterator[Signal]:
    name = curves.loss
    if name is None:
        return
    train, validation, epochs = curves.train[name], curves.validation[name], curves.epochs
    start = overfitting_start(train, validation, patience=patience)
    if start is not None:
        yield Signal(
            "overfitting",
            epochs[start],
            f"the validation {name} rose from {validation[curves.best]:.4g} to {validation[-1]:.4g}, while the "
            f"training {name} fell from {train[curves.best]:.4g} to {train[-1]:.4g}. Stop there "
            "(BestWeightsEarlyStopping), or regularize more",
        )
    accuracy = curves.train[curves.accuracy] if curves.accuracy is not None else ()
    if start is None and is_underfitting(train, validation, accuracy):
        seen = f"its accuracy is {100 * accuracy[-1]:.4g} %" if accuracy else f"the {name} is {train[-1]:.4g}"
        yield Signal(
            "underfitting",
            epochs[0],
            f"on the training data {seen}, and validation is hardly worse. Train longer, with a higher learning rate "
            "or a larger model, or regularize less",
        )
    elif is_unfinished(validation, patience=patience):
        yield Signal("unfinished", epochs[-1], f"the validation {name} was lowest at the very end. Train longer")


def _of_accuracy(curves: Curves) -> Iterator[Signal]:
    name = curves.accuracy
    start = None if name is None else memorization_start(curves.train[name], curves.validation[name])
    if name is not None and start is not None:
        yield Signal(
            "memorization",
            curves.epochs[start],
            f"{name} on training data is {100 * curves.train[name][-1]:.4g} %, on validation data "
            f"{100 * curves.validation[name][-1]:.4g} %. More data, augmentation or mixing help most",
        )


def _of_size(weights: int, samples: int | None) -> Iterator[Signal]:
    if samples and weights >= _MANY_WEIGHTS * samples:
        yield Signal(
            "capacity",
            0,
            f"{weights:,} trainable weights for {samples:,} samples, {weights / samples:.3g} for each: enough to learn "
            "them by heart; only regularization is in the way",
        )


def summary_lines(curves: Curves, signals: Sequence[Signal] | None, samples: Mapping[str, int]) -> list[str]:
    """Returns what is printed when a fit ends, in lines of at most 100 columns.

    Args:
        curves: Curves with at least one measurement.
        signals: Signs that were found; None where the curves can't have any.
        samples: Number of samples that were measured, by ``train`` and ``validation``.
    """
    on = f", on {samples['train']:,} and {samples['validation']:,} samples" if samples else ""
    rows = [["", "train", "validation", "gap"]]
    for index in sorted({curves.best, len(curves.epochs) - 1}):
        which = "best" if index == curves.best else "last"
        for name in curves.train:
            train, validation = curves.train[name][index], curves.validation[name][index]
            gap = generalization_gap(train, validation, lower_is_better=curves.lower_is_better[name])
            title = f"{name}, {which} (epoch {curves.epochs[index]})"
            rows.append([title, f"{train:.4f}", f"{validation:.4f}", f"{gap:.4f}"])
    lines = [f"Training and validation data measured alike{on}", "", *table(rows, right=[1, 2, 3]), ""]
    for signal in signals or ():
        lines += textwrap.wrap(f"- {signal}.", _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    if signals is None:
        lines.append("Nothing can be said of over- or underfitting: validation measures training samples alone.")
    elif not signals:
        lines.append("No sign of over- or underfitting.")
    return lines
