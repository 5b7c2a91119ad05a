"""Base class of tasks, and their predictions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torchmetrics import Metric

__all__ = ["Prediction", "Task"]


class Prediction(NamedTuple):
    """Predictions for a batch, with their uncertainty.

    Attributes:
        value: Probabilities (N, C), or numbers (N,) or (N, T).
        std: Standard deviation of each value, of the same shape: over stochastic passes, combined with the noise that
            the network predicts for a number.
        entropy: Total uncertainty about the class, in nats (N,); None where there are no classes.
        mutual_information: Part of the entropy that comes from not knowing the weights (N,).
    """

    value: Tensor
    std: Tensor
    entropy: Tensor | None = None
    mutual_information: Tensor | None = None


class Task(nn.Module, ABC):
    """The meaning of a network's outputs: their loss, their metrics, and predictions from them.

    A model copies its task, passes the number of classes or targets to ``build`` and, if the task ``needs_targets``,
    the training targets to ``prepare`` before the first step.
    """

    takes_soft_targets: ClassVar[bool] = True
    """Whether loss and metrics are correct for mixed targets."""

    predicts_classes: ClassVar[bool] = False
    """Whether predictions are probabilities (N, C) that sum to 1."""

    @abstractmethod
    def build(self, *, num_classes: int | None, num_targets: int | None) -> int:
        """Sets up whatever depends on the data, and returns the number of outputs that a network must have.

        Args:
            num_classes: Number of classes; None where the data has none.
            num_targets: Number of targets or labels per sample; None for classification.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the training loss, a scalar.

        Args:
            outputs: (N, outputs), of the network.
        """

    def plain_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of validation and test: without label smoothing and weights, so that runs can be compared.

        Args:
            outputs: (N, outputs), of the network.
        """
        return self.loss(outputs, targets)

    @abstractmethod
    def metrics(self) -> dict[str, Metric]:
        """Returns new metrics by name; each is updated with what ``measured`` returns."""

    @abstractmethod
    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns predictions and targets as metrics take them.

        Args:
            outputs: (N, outputs), of the network, from one or several batches.
        """

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """Returns predictions from outputs: probabilities or numbers.

        Args:
            outputs: (N, outputs), of the network.
        """

    def variances(self, outputs: Tensor) -> Tensor | None:
        """Returns the variance of each prediction where the outputs contain it, else None.

        Args:
            outputs: (N, outputs), of the network.
        """
        return None

    @property
    def needs_targets(self) -> bool:
        """Whether ``prepare`` has to be called before training."""
        return False

    def prepare(self, targets: Tensor) -> None:
        """Sets constants from the training targets; called if ``needs_targets``.

        Args:
            targets: All targets of the training samples.
        """

    @abstractmethod
    def columns(self, predicted: Tensor | Prediction, names: Sequence[str]) -> dict[str, list[Any]]:
        """Returns the columns of a table of predictions, other than the samples' names.

        Args:
            predicted: Predictions of a batch.
            names: Names of classes, labels or targets; empty where they have none.
        """


def digits(values: Tensor) -> list[str]:
    """Returns values with six decimals."""
    return [f"{value:.6f}" for value in values.tolist()]


def columns_by_name(predicted: Tensor | Prediction, names: Sequence[str]) -> dict[str, list[Any]]:
    """Returns a column for each value of a sample and, where it is known, one for its standard deviation."""
    value, std = (predicted.value, predicted.std) if isinstance(predicted, Prediction) else (predicted, None)
    columns = {name: value.reshape(len(value), -1)[:, index].tolist() for index, name in enumerate(names)}
    if std is not None:
        spread = std.reshape(len(std), -1)
        columns |= {f"{name}_std": spread[:, index].tolist() for index, name in enumerate(names)}
    return columns
