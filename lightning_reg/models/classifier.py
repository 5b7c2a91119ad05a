"""The one training step: classification with any network."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lightning_reg.attach.samples import training_samples
from lightning_reg.functional.lsuv import lsuv_
from lightning_reg.models.checkpoints import check_fits, check_same_structure
from lightning_reg.nn.concrete_dropout import concrete_layers, concrete_penalty
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
    epoch. For soft targets the accuracy is that of the dominant class. A network with ``ConcreteDropout`` gets the term
    by which it learns its rates; they are logged as ``dropout/<layer>``.

    Args:
        network: From a batch of inputs to logits (N, num_classes).
        num_classes: Number of classes, at least 2.
        input_shape: Shape of one sample, for Lightning's table of layers; not needed.
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

    takes_soft_targets = True
    """Whether loss and metrics are right for probabilities as targets, as mixing gives them; the audit asks."""

    adds_concrete_penalty = True
    """Whether the term by which ``ConcreteDropout`` learns is added here; the callback that does it says no."""

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        input_shape: Sequence[int] | None = None,
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
        self.input_shape = input_shape
        self.label_smoothing = label_smoothing
        self.weight_decay = weight_decay
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self.accuracy = nn.ModuleDict(
            {stage: MulticlassAccuracy(num_classes, average="micro", validate_args=False) for stage in _STAGES}
        )
        self._is_scaled = False
        self._learns_rates = bool(concrete_layers(network))
        if compile:
            self.network.compile()  # in place, so that checkpoints keep their names

    @property  # type: ignore[misc]  # Lightning's can be set, too
    def example_input_array(self) -> Tensor | None:  # type: ignore[override]
        """Two samples of zeros in the weights' precision, for Lightning's table of layers."""
        if self.input_shape is None:
            return None
        return torch.zeros(2, *self.input_shape, dtype=next(self.parameters()).dtype)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the logits (N, num_classes)."""
        logits: Tensor = self.network(inputs)
        return logits

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        try:
            logits = self(inputs)
        except ValueError as error:
            if len(inputs) == 1 and re.search("more than (1|one) value per channel", str(error)):
                raise SettingError(
                    "batch_size must leave at least 2 samples in every training batch where BatchNorm has one value "
                    "per sample to work on, but a batch has 1; use a larger batch_size, or norm 'layer' or 'group'"
                ) from error
            raise
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        self._log_epoch("fit", loss, logits, targets)
        return loss + self._concrete_penalty() if self._learns_rates and self.adds_concrete_penalty else loss

    def _concrete_penalty(self) -> Tensor:
        """What layers that learn their rate of dropout add to the loss; the one that is logged stays clean."""
        penalty = concrete_penalty(self.network, training_samples(self.trainer))
        self.log("penalty/concrete_dropout", penalty.detach())
        return penalty

    @override
    def on_train_epoch_end(self) -> None:
        if self.adds_concrete_penalty:  # else the callback logs them
            for name, layer in concrete_layers(self.network).items():
                self.log(f"dropout/network.{name}", layer.logit_bias.detach().sigmoid())

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
        # Every rank is given equally many samples, so the mean over ranks is the mean over samples. (Lightning repeats
        # a few where they don't divide evenly; those count twice.)
        self.log_dict(values, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels), sync_dist=True)

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self._make_optimizer()
        scheduler = self._lr_scheduler(optimizer) if self._lr_scheduler else None
        self._configured = [dict(group, params=()) for group in optimizer.param_groups]
        if scheduler is None:
            return optimizer
        if isinstance(scheduler, ReduceLROnPlateau):
            monitor = getattr(scheduler, "monitor", "val/loss")  # Lightning's subclass brings one, torch's doesn't
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": monitor}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}

    def _make_optimizer(self) -> torch.optim.Optimizer:
        try:
            optimizer = self._optimizer(weight_decay_groups(self, self.weight_decay))
        except ValueError as error:
            if "per-parameter options" in str(error):
                raise SettingError(
                    f"optimizer must take parameter groups, so that norms and biases can be spared, but: {error}"
                ) from error
            raise
        if self.weight_decay and "weight_decay" not in optimizer.defaults:
            raise SettingError(
                f"weight_decay must be left out with {type(optimizer).__name__}, which has none, but is "
                f"{self.weight_decay}; use another optimizer, or the callback L2Penalty"
            )
        return optimizer

    @override
    def on_train_start(self) -> None:
        """Says so where a checkpoint brought other settings of the optimizer than were asked for."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        if self.trainer.ckpt_path is None or not isinstance(optimizer, torch.optim.Optimizer):
            return
        # A scheduler moves the rate, so what it started from is compared; one that keeps no record of that isn't.
        rate = "lr" if self._lr_scheduler is None else "initial_lr"
        for asked, restored in zip(self._configured, optimizer.param_groups, strict=True):
            for name in (rate, "weight_decay"):
                if asked.get(name) != restored.get(name):
                    rank_zero_warn(
                        f"The optimizer goes on as the checkpoint has it, with {name} {restored.get(name)}, not "
                        f"{asked.get(name)}; to train with other settings, start a new run"
                    )
                    return

    @override
    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Scales the weights by the first batch where the initialization asks for it."""
        if self.hparams.get("init") != "lsuv" or self._is_scaled:
            return
        self._is_scaled = True
        if any(is_parametrized(each) for each in self.network.modules()):
            raise SettingError(
                "init must not be 'lsuv' where weights are computed from others, as with SpectralNormalization or "
                "WeightStandardization"
            )
        lsuv_(self.network, batch[0], orthogonal=False)
        for parameter in self.network.parameters():  # every process has seen another batch
            parameter.data.copy_(self.trainer.strategy.broadcast(parameter.detach()))

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._is_scaled = True
        # Only under a trainer: load_from_checkpoint knows by itself whether it is to be strict.
        if self._trainer is not None and self.strict_loading:
            check_same_structure(checkpoint.get("hyper_parameters", {}), self.hparams)
            check_fits(checkpoint["state_dict"], self)
