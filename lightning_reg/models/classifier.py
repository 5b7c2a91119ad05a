"""The one training step: classification with any network."""

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lightning_reg.models.checkpoints import check_fits
from lightning_reg.optim import weight_decay_groups
from lightning_reg.settings import SettingError, check_count, check_range

__all__ = ["Classifier", "default_optimizer"]

# Key of a stage's metric ("train" would hide the method of that name) and its prefix in tags.
_STAGES = {"fit": "train", "validate": "val", "test": "test"}


def default_optimizer(params: Iterable[Any]) -> torch.optim.Optimizer:
    """Returns AdamW with a learning rate of 1e-3 and torch's default weight decay of 0.01.

    Args:
        params: Parameters or groups of them.
    """
    return torch.optim.AdamW(params, lr=1e-3)


class Classifier(LightningModule):
    """Trains any network to classify, with cross entropy.

    Targets are class indices (N,) or probabilities (N, C), as mixing emits them. Validation and test report the plain
    cross entropy, without label smoothing, so that runs with different smoothing can be compared.

    Logs ``train/loss``, ``train/accuracy``, ``val/loss``, ``val/accuracy``, ``test/loss`` and ``test/accuracy`` once an
    epoch. For soft targets the accuracy is that of the dominant class.

    Args:
        network: From a batch of inputs to logits (N, num_classes).
        num_classes: Number of classes, at least 2.
        label_smoothing: Share of the target that is spread evenly over all classes, in [0, 1).
        optimizer: Makes the optimizer from parameter groups.
        lr_scheduler: Makes the learning rate scheduler, stepped once an epoch.
        weight_decay: Strength of the optimizer's weight decay, at least 0; norms, biases and embeddings are left out.
            Where None, the optimizer's own setting applies to the rest.
        compile: Whether the network is compiled by torch.compile.

    Raises:
        SettingError: If an argument is out of its range.

    Reference:
        Label smoothing: Christian Szegedy et al.: Rethinking the Inception Architecture for Computer Vision, CVPR
        2016, arXiv:1512.00567.

    >>> module = Classifier(nn.Linear(4, 3), num_classes=3)
    >>> module(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        label_smoothing: float = 0.0,
        optimizer: OptimizerCallable = default_optimizer,
        lr_scheduler: LRSchedulerCallable | None = None,
        weight_decay: float | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes, low=2)
        check_range("label_smoothing", label_smoothing, low=0, high=1, high_open=True)
        if weight_decay is not None:
            check_range("weight_decay", weight_decay, low=0)
        self.network = network
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.weight_decay = weight_decay
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self.accuracy = nn.ModuleDict(
            {stage: MulticlassAccuracy(num_classes, average="micro", validate_args=False) for stage in _STAGES}
        )
        self._batch_statistics = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())
        if compile:
            self.network.compile()  # in place, so that checkpoints keep their names

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the logits (N, num_classes)."""
        logits: Tensor = self.network(inputs)
        return logits

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        if self._batch_statistics and len(inputs) == 1:
            raise SettingError(
                "batch_size must leave at least 2 samples in every training batch, because the network has BatchNorm, "
                "but a batch has 1; use a larger batch_size, drop_last, or norm 'layer' or 'group'"
            )
        logits = self(inputs)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        self._log_epoch("fit", loss, logits, targets)
        return loss

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate("validate", batch)

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate("test", batch)

    @override
    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Returns the probabilities (N, num_classes)."""
        logits: Tensor = self(batch[0])
        return logits.softmax(-1)

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        inputs, targets = batch
        logits = self(inputs)
        self._log_epoch(stage, F.cross_entropy(logits, targets), logits, targets)

    def _log_epoch(self, stage: str, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        labels = targets.argmax(-1) if targets.is_floating_point() else targets
        accuracy = cast(Metric, self.accuracy[stage])
        accuracy.update(logits.argmax(-1), labels)
        prefix = _STAGES[stage]
        values: dict[str, Metric | Tensor | int | float] = {f"{prefix}/loss": loss, f"{prefix}/accuracy": accuracy}
        # The mean of the loss over ranks is right because every rank is given equally many samples.
        self.log_dict(values, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels), sync_dist=True)

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self._optimizer(weight_decay_groups(self, self.weight_decay))
        if self._lr_scheduler is None:
            return optimizer
        scheduler = self._lr_scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            monitor = getattr(scheduler, "monitor", "val/loss")  # Lightning's subclass brings one, torch's doesn't
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": monitor}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_fits(checkpoint["state_dict"], self)
