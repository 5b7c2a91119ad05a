"""Classification: one class per sample, or any number of labels."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision, MultilabelF1Score
from typing_extensions import override

from lightning_reg.models.metrics import BalancedAccuracy
from lightning_reg.models.tasks.task import Prediction, Task, columns_by_name, digits
from lightning_reg.settings import SettingError, as_sequence, check_choice, check_count, check_range

__all__ = ["Classification", "Multilabel"]

ClassWeights = Literal["balanced"] | Sequence[float] | None


class _Labels(Task):
    """Base class of classification tasks: label smoothing, and class weights in the training loss."""

    weights: Tensor | None

    def __init__(self, *, label_smoothing: float = 0.0, class_weights: ClassWeights = None) -> None:
        super().__init__()
        check_range("label_smoothing", label_smoothing, low=0, high=1)
        _check_weights(class_weights)
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights

    @property
    @override
    def needs_targets(self) -> bool:
        return self.class_weights == "balanced"


class Classification(_Labels):
    """One class per sample, by cross entropy; targets are indices (N,) or probabilities (N, C), as from mixing.

    Metrics are ``accuracy`` and ``balanced_accuracy``, the mean accuracy over classes; for soft targets those of the
    dominant class.

    Args:
        label_smoothing: Share of the target that is spread evenly over all classes, in [0, 1].
        class_weights: Weight of each class in the training loss, positive; ``balanced`` for weights inverse to the
            class's frequency in the training samples, 1 for classes equally frequent; None for no weights.

    Raises:
        SettingError: If a number is out of range.

    Reference:
        Label smoothing: Christian Szegedy et al.: Rethinking the Inception Architecture for Computer Vision, CVPR
        2016, arXiv:1512.00567.

    >>> task = Classification(label_smoothing=0.1)
    >>> task.build(num_classes=3, num_targets=None)
    3
    """

    predicts_classes = True

    @override
    def build(self, *, num_classes: int | None, num_targets: int | None) -> int:
        if num_classes is None:
            raise SettingError(
                "num_classes must be given for classification"
                + ("" if num_targets is None else f"; for {num_targets} targets a sample, task must be regression")
            )
        if num_targets is not None:
            raise SettingError(f"task must be multilabel for {num_targets} labels a sample, but is classification")
        check_count("num_classes", num_classes, low=2)
        self.num_classes = num_classes
        self.register_buffer("weights", _weights(self.class_weights, num_classes), persistent=False)
        return num_classes

    @override
    def prepare(self, targets: Tensor) -> None:
        shares = targets.float() if targets.is_floating_point() else F.one_hot(targets.long(), self.num_classes).float()
        counts = shares.sum(0).clamp(min=1)
        self.weights = (counts.sum() / (self.num_classes * counts)).to(self.weights)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, self.weights, label_smoothing=self.label_smoothing)

    @override
    def plain_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    @override
    def metrics(self) -> dict[str, Metric]:
        return {
            "accuracy": MulticlassAccuracy(self.num_classes, average="micro", validate_args=False),
            "balanced_accuracy": BalancedAccuracy(self.num_classes, validate_args=False),
        }

    @override
    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return outputs.argmax(-1), targets.argmax(-1) if targets.is_floating_point() else targets

    @override
    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(-1)

    @override
    def columns(self, predicted: Tensor | Prediction, names: Sequence[str]) -> dict[str, list[Any]]:
        value = predicted.value if isinstance(predicted, Prediction) else predicted
        probabilities, classes = value.max(1)
        columns = {
            "class": [names[index] if names else index for index in classes.tolist()],
            "probability": digits(probabilities),
        }
        if isinstance(predicted, Prediction) and predicted.entropy is not None:
            columns["std"] = digits(predicted.std.gather(1, classes[:, None])[:, 0])
            columns["entropy"] = digits(predicted.entropy)
            if predicted.mutual_information is not None:
                columns["mutual_information"] = digits(predicted.mutual_information)
        return columns


class Multilabel(_Labels):
    """Any number of labels per sample, by binary cross entropy; targets (N, L) are in [0, 1], 0 or 1 unless mixed.

    Metrics, each averaged over labels, are ``f1`` at a probability of 0.5 and ``mean_average_precision``.

    Args:
        label_smoothing: Share of the target that is spread evenly over presence and absence, in [0, 1].
        class_weights: Weight of each label's presence in the training loss, positive, relative to its absence;
            ``balanced`` for the number of training samples without the label over that with it; None for no weights.

    Raises:
        SettingError: If a number is out of range.

    >>> Multilabel().build(num_classes=None, num_targets=5)
    5
    """

    @override
    def build(self, *, num_classes: int | None, num_targets: int | None) -> int:
        labels = num_classes if num_targets is None else num_targets
        if labels is None:
            raise SettingError("num_targets must be the number of labels for task multilabel, but is None")
        check_count("num_targets", labels)
        self.num_labels = labels
        self.register_buffer("weights", _weights(self.class_weights, labels), persistent=False)
        return labels

    @override
    def prepare(self, targets: Tensor) -> None:
        present = targets.float().sum(0)
        self.weights = ((len(targets) - present) / present.clamp(min=1)).to(self.weights)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = targets.to(outputs)
        if self.label_smoothing:
            wanted = wanted + self.label_smoothing * (0.5 - wanted)
        return F.binary_cross_entropy_with_logits(outputs, wanted, pos_weight=self.weights)

    @override
    def plain_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs))

    @override
    def metrics(self) -> dict[str, Metric]:
        return {
            "f1": MultilabelF1Score(self.num_labels, average="macro", validate_args=False),
            "mean_average_precision": MultilabelAveragePrecision(self.num_labels, validate_args=False),
        }

    @override
    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return outputs.sigmoid(), (targets > 0.5).long() if targets.is_floating_point() else targets

    @override
    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    @override
    def columns(self, predicted: Tensor | Prediction, names: Sequence[str]) -> dict[str, list[Any]]:
        labels = names or [f"label_{index}" for index in range(self.num_labels)]
        return columns_by_name(predicted, labels)


def _check_weights(class_weights: ClassWeights) -> None:
    if isinstance(class_weights, str):
        check_choice("class_weights", class_weights, ["balanced"])
        return
    for weight in as_sequence("class_weights", () if class_weights is None else class_weights):
        check_range("each of class_weights", weight, low=0, low_open=True)


def _weights(class_weights: ClassWeights, count: int) -> Tensor | None:
    if class_weights is None:
        return None
    if isinstance(class_weights, str):
        return torch.ones(count)
    if len(class_weights) != count:
        raise SettingError(f"class_weights must have {count} entries, one for each class, but has {len(class_weights)}")
    return torch.tensor(list(class_weights), dtype=torch.float32)
