"""What every task has in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torchmetrics import Metric

__all__ = ["Prediction", "Task"]


class Prediction(NamedTuple):
    """What is predicted of a batch, and how sure that is.

    Attributes:
        value: Probabilities (N, C), or numbers (N,) or (N, T).
        std: Standard deviation of each value, of the same shape: that of stochastic passes, with what the network
            itself says of the noise in a number.
        entropy: Total uncertainty about the class, in nats (N,); None where there are no classes.
        mutual_information: Part of the entropy that comes from not knowing the weights (N,).
    """

    value: Tensor
    std: Tensor
    entropy: Tensor | None = None
    mutual_information: Tensor | None = None


class Task(nn.Module, ABC):
    """What a network's outputs mean: their loss, their metrics, and what is predicted from them.

    A model copies its task, says by ``build`` how many classes or targets the data has, and, if the task
    ``needs_targets``, hands over the training part's targets before the first step.
    """

    takes_soft_targets: ClassVar[bool] = True
    """Whether loss and metrics are right for targets that were mixed."""

    predicts_classes: ClassVar[bool] = False
    """Whether predictions are probabilities (N, C) that sum to 1."""

    @abstractmethod
    def build(self, *, num_classes: int | None, num_targets: int | None) -> int:
        """Makes what depends on the data, and returns how many outputs a network must have.

        Args:
            num_classes: How many classes there are; None where the data has none.
            num_targets: How many numbers or labels a sample has; None where it has a class.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss that is trained on, a scalar.

        Args:
            outputs: The network's, (N, outputs).
        """

    def plain_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of validation and test: without what only helps training, so that runs can be compared.

        Args:
            outputs: The network's, (N, outputs).
        """
        return self.loss(outputs, targets)

    @abstractmethod
    def metrics(self) -> dict[str, Metric]:
        """Returns new metrics by name; each is updated with what ``measured`` returns."""

    @abstractmethod
    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns predictions and targets as metrics take them.

        Args:
            outputs: The network's, (N, outputs), of one or several batches.
        """

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """Returns what is predicted from outputs: probabilities or numbers.

        Args:
            outputs: The network's, (N, outputs).
        """

    def variances(self, outputs: Tensor) -> Tensor | None:
        """Returns the variance of each prediction that the outputs themselves tell; None where they don't.

        Args:
            outputs: The network's, (N, outputs).
        """
        return None

    @property
    def needs_targets(self) -> bool:
        """Whether ``prepare`` has to be called before training."""
        return False

    def prepare(self, targets: Tensor) -> None:
        """Learns what it needs of the training part, where it ``needs_targets``.

        Args:
            targets: All of the training part's.
        """

    @abstractmethod
    def columns(self, predicted: Tensor | Prediction, names: Sequence[str]) -> dict[str, list[Any]]:
        """Returns what a table of predictions has beside the samples' names, by column.

        Args:
            names: Of classes, labels or targets; empty where they have none.
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
