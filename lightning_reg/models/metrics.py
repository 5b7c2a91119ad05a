"""Metrics whose updates cost a training step next to nothing."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.regression import MeanSquaredError, R2Score
from torchmetrics.wrappers.abstract import WrapperMetric
from typing_extensions import override

__all__ = ["BalancedAccuracy", "CenteredR2Score", "Deferred", "RootMeanSquaredError", "SampleMean"]

_MOST_BATCHES = 64
_MOST_NUMBERS = 2**20


class Deferred(WrapperMetric):
    """Updates a metric with many batches at once.

    An update of a torchmetrics metric takes as long as the whole training step of a small network. Batches are
    therefore kept, as they are, until 64 of them or a million numbers have accumulated or the metric is computed.

    Args:
        metric: The metric to update.
        measured: Function from outputs and targets to the arguments of the metric's update.
    """

    def __init__(self, metric: Metric, measured: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.metric = metric
        self._measured = measured
        self._waiting: list[tuple[Tensor, Tensor]] = []

    @override
    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Keeps a batch, which mustn't change afterwards."""
        waiting = self._waiting
        if waiting and waiting[-1][1].ndim != targets.ndim:  # indices after probabilities
            self._hand_over()
        waiting.append((outputs, targets))
        if len(waiting) >= _MOST_BATCHES or outputs.numel() * len(waiting) >= _MOST_NUMBERS:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._waiting:
            outputs, targets = (_joined(column) for column in zip(*self._waiting, strict=True))
            self._waiting.clear()
            self.metric.update(*self._measured(outputs, targets))

    @override
    def compute(self) -> Any:
        """Returns the metric over all batches so far."""
        self._hand_over()
        return self.metric.compute()

    @override
    def reset(self) -> None:
        """Resets the metric and drops the batches that were kept."""
        super().reset()
        self._waiting.clear()
        self.metric.reset()


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)) if tensors[0].ndim == 0 else torch.cat(list(tensors))


class SampleMean(Metric):
    """Mean over samples of a value that is known as the mean of each batch.

    torchmetrics' ``MeanMetric`` ignores the weights where its check for NaN is off.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total: Tensor
        self.samples: Tensor
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("samples", torch.tensor(0.0), dist_reduce_fx="sum")

    @override
    def update(self, values: Tensor, counts: Tensor) -> None:
        """Adds the means of batches, with their numbers of samples."""
        counts = counts.to(self.total)
        self.total = self.total + (values.to(self.total) * counts).sum()
        self.samples = self.samples + counts.sum()

    @override
    def compute(self) -> Tensor:
        """Returns the mean."""
        return self.total / self.samples


class BalancedAccuracy(MulticlassConfusionMatrix):
    """Mean recall over the classes that occur, as scikit-learn's ``balanced_accuracy_score``.

    torchmetrics' macro accuracy counts a class that is predicted but doesn't occur with an accuracy of 0.
    """

    @override
    def compute(self) -> Tensor:
        """Returns the balanced accuracy, in [0, 1]."""
        confusion = super().compute()
        samples = confusion.sum(1)
        recalls = confusion.diag() / samples.clamp(min=1)
        return recalls.sum() / (samples > 0).sum()


class RootMeanSquaredError(MeanSquaredError):
    """Root mean squared error of each target, averaged over targets.

    Args:
        num_targets: Number of targets per sample.
    """

    def __init__(self, num_targets: int) -> None:
        super().__init__(squared=False, num_outputs=num_targets)

    @override
    def compute(self) -> Tensor:
        """Returns the error in the targets' unit."""
        return super().compute().mean()


class CenteredR2Score(R2Score):
    """R² whose sums are taken around a value near the targets' mean: around 0, float32 loses a small variance.

    It is NaN for fewer than two samples.

    Args:
        centered: Function that subtracts a value near the targets' mean.
    """

    def __init__(self, centered: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.centered = centered

    @override
    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a batch of predictions and targets in the targets' unit."""
        super().update(self.centered(preds), self.centered(target))

    @override
    def compute(self) -> Tensor:
        """Returns R², at most 1, averaged over targets."""
        if self.total < 2:
            return torch.full_like(self.sum_error, torch.nan).mean()
        return super().compute()
