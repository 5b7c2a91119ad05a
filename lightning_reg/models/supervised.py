"""The training step of all models: classification, regression and several labels, with any network."""

import re
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.optim.lr_scheduler import ReduceLROnPlateau
from typing_extensions import override

from lightning_reg.core.hyperparameters import save_plain_hyperparameters
from lightning_reg.core.samples import training_samples
from lightning_reg.init.lsuv import lsuv_
from lightning_reg.models.checkpoints import check_fits, check_same_structure
from lightning_reg.models.masks import KeyedMasks
from lightning_reg.models.metrics import Deferred, SampleMean
from lightning_reg.models.shapes import check_network, check_outputs
from lightning_reg.models.tasks import Classification, Multilabel, Prediction, Regression, Task
from lightning_reg.models.training_targets import training_targets
from lightning_reg.nn import monte_carlo_predict
from lightning_reg.nn.layers.concrete_dropout import concrete_layers, concrete_penalty
from lightning_reg.optim import weight_decay_groups
from lightning_reg.settings import SettingError, check_callable, check_choice, check_range

__all__ = ["Supervised", "chosen_task", "default_optimizer"]

TaskName = Literal["auto", "classification", "regression", "multilabel"]

_TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "regression": Regression,
    "multilabel": Multilabel,
}

# Key of a stage's metrics ("train" would hide the method of that name) and its prefix in tags.
_STAGES = {"fit": "train", "validate": "val", "test": "test"}


def default_optimizer(params: Iterable[Any]) -> torch.optim.Optimizer:
    """Returns AdamW with a learning rate of 1e-3 and torch's default weight decay of 0.01.

    Args:
        params: Parameters or groups of them.
    """
    return torch.optim.AdamW(params, lr=1e-3)


def chosen_task(
    task: Task | TaskName, *, num_classes: int | None, num_targets: int | None, label_smoothing: float = 0.0
) -> Task:
    """Returns the task for a setting; a copy where a task is given.

    Args:
        task: A task, its name, or ``auto``: classification where ``num_classes`` alone is given, regression where
            ``num_targets`` alone is, multilabel where both are, as data modules set them.
        num_classes: Number of classes or labels; None where there are none.
        num_targets: Number of targets or labels per sample; None for classification.
        label_smoothing: Label smoothing of a task given by name, in [0, 1].

    Raises:
        SettingError: If there is no such task, or it has no labels to smooth.

    >>> chosen_task("auto", num_classes=3, num_targets=None)
    Classification()
    """
    if isinstance(task, Task):
        if label_smoothing:
            raise SettingError(
                f"label_smoothing must be left out where task has settings of its own, but is {label_smoothing}"
            )
        return deepcopy(task)
    check_choice("task", task, ["auto", *_TASKS])
    check_range("label_smoothing", label_smoothing, low=0, high=1)
    name: str = task
    if task == "auto":
        name = "regression" if num_classes is None else "classification" if num_targets is None else "multilabel"
    if name == "regression":
        if label_smoothing:
            raise SettingError(
                f"label_smoothing must be 0 for regression, which has no labels, but is {label_smoothing}"
            )
        return Regression()
    return (
        Multilabel(label_smoothing=label_smoothing)
        if name == "multilabel"
        else Classification(label_smoothing=label_smoothing)
    )


def _as_they_are(losses: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    return losses, counts


class Supervised(LightningModule):
    """Trains any network on batches (inputs, targets), by the loss of its task.

    Logs ``train/loss``, ``val/loss``, ``test/loss`` and, under the same prefixes, the task's metrics, once an epoch:
    ``accuracy`` and ``balanced_accuracy`` for classification; ``mae``, ``rmse`` and ``r2`` for regression; ``f1`` and
    ``mean_average_precision`` for several labels. Validation and test report the loss without label smoothing and class
    weights, so that runs that differ in them can be compared. For a network with ``ConcreteDropout``, the term that its
    rates are learned from is added to the loss; they are logged as ``dropout/<layer>``. On the CPU, dropout depends on
    seed, process, epoch and batch alone, so that an interrupted run goes on as it would have, see ``KeyedMasks``.

    Args:
        network: Module from a batch of inputs to outputs (N, outputs): logits of classes or labels; numbers, and their
            variances for a Gaussian likelihood. In Python also a function from the number of outputs to such a module.
        task: ``classification``, ``regression``, ``multilabel`` (several labels per sample), a ``Task`` with settings
            of its own, or ``auto``: classification where ``num_classes`` is given, regression where ``num_targets`` is,
            several labels where both are.
        num_classes: Number of classes; taken from the data module on the command line.
        num_targets: Number of targets or labels per sample; taken from the data module on the command line.
        input_shape: Shape of one sample, with which the network is checked before training; taken from the data module
            on the command line.
        label_smoothing: Share of the target that is spread evenly over all classes, in [0, 1].
        optimizer: Function from parameter groups to an optimizer.
        lr_scheduler: Function from the optimizer to a learning rate scheduler, which is stepped once per epoch.
        weight_decay: Strength of the optimizer's weight decay, at least 0; norms, biases and embeddings are left out.
            Where None, the optimizer's own setting applies to the rest.
        compile: Whether to compile the network with torch.compile; recurrent layers themselves aren't compiled.

    Raises:
        SettingError: If an argument is out of range, or the task lacks the number of classes or targets.

    >>> module = Supervised(nn.Linear(4, 3), num_classes=3)
    >>> module(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    >>> Supervised(nn.Linear(4, 1), num_targets=1).task
    Regression()
    """

    structure: ClassVar[tuple[str, ...]] = ()
    """Arguments that decide what the network computes although weights of the same shapes would load: a checkpoint that
    was trained with others is refused."""

    adds_concrete_penalty = True
    """Whether the penalty of ``ConcreteDropout`` is added here; the callback that adds it sets this to False."""

    def __init__(
        self,
        network: nn.Module,
        *,
        task: Task | TaskName = "auto",
        num_classes: int | None = None,
        num_targets: int | None = None,
        input_shape: Sequence[int] | None = None,
        label_smoothing: float = 0.0,
        optimizer: OptimizerCallable = default_optimizer,
        lr_scheduler: LRSchedulerCallable | None = None,
        weight_decay: float | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        check_callable("network", network, "a module, or a function from the number of outputs to one")
        check_callable("optimizer", optimizer, "a function from parameter groups to an optimizer")
        if lr_scheduler is not None:
            check_callable("lr_scheduler", lr_scheduler, "a function from an optimizer to a learning rate scheduler")
        if weight_decay is not None:
            check_range("weight_decay", weight_decay, low=0)
        save_plain_hyperparameters(self, ignore=["network", *(["task"] if isinstance(task, Task) else [])])
        if num_classes is None and num_targets is None and not isinstance(task, Task):
            raise SettingError(
                "num_classes or num_targets must be given: how many classes there are, or how many numbers or labels a "
                "sample has"
            )
        self.task = chosen_task(task, num_classes=num_classes, num_targets=num_targets, label_smoothing=label_smoothing)
        self.num_outputs = self.task.build(num_classes=num_classes, num_targets=num_targets)
        # Not among the types of the argument: the parser would take any user's function for one.
        make: Callable[[int], nn.Module] | None = None if isinstance(network, nn.Module) else network
        self._compiles = compile
        self.use_network(network if make is None else make(self.num_outputs))
        self.input_shape = input_shape
        self.weight_decay = weight_decay
        self.predict_samples: int | None = None
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self._metrics = nn.ModuleDict({stage: self._new_metrics() for stage in _STAGES})
        self._logged: set[str] = set()
        self._is_scaled = False
        self._masks: KeyedMasks | None = None  # of a fit

    def use_network(self, network: nn.Module) -> None:
        """Replaces the network, before a fit.

        Args:
            network: Module from a batch of inputs to outputs (N, outputs).
        """
        self.network = network
        self._learns_rates = bool(concrete_layers(network))
        if self._compiles:
            self.network.compile()  # in place, so that checkpoints keep their names

    def _new_metrics(self) -> nn.ModuleDict:
        metrics = {name: Deferred(metric, self.task.measured) for name, metric in self.task.metrics().items()}
        return nn.ModuleDict({"loss": Deferred(SampleMean(), _as_they_are), **metrics})

    @property
    def takes_soft_targets(self) -> bool:
        """Whether loss and metrics are correct for mixed targets; read by the audit."""
        return self.task.takes_soft_targets

    @override
    def setup(self, stage: str) -> None:
        """Runs the network on two samples, so that one that doesn't match the data is refused before anything else."""
        if self.input_shape is not None:
            check_network(self.network, self.input_shape, self.num_outputs)

    @property  # type: ignore[misc]  # Lightning's has a setter, too
    def example_input_array(self) -> Tensor | None:  # type: ignore[override]
        """Two samples of zeros in the weights' precision, for Lightning's table of layers."""
        if self.input_shape is None:
            return None
        return torch.zeros(2, *self.input_shape, dtype=next(self.parameters()).dtype)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the network's outputs (N, outputs)."""
        outputs: Tensor = self.network(inputs)
        return outputs

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        if self._masks is not None and not torch.compiler.is_compiling():
            self._masks.start(self.global_rank, self.current_epoch, batch_idx)
        try:
            outputs = self(inputs)
        except ValueError as error:
            if len(inputs) == 1 and re.search("more than (1|one) value per channel", str(error)):
                raise SettingError(
                    "batch_size must leave at least 2 samples in every training batch where BatchNorm has one value "
                    "per sample to work on, but a batch has 1; use a larger batch_size, or norm 'layer' or 'group'"
                ) from error
            raise
        if "fit" not in self._logged:
            check_outputs(outputs, self.num_outputs)
        loss = self.task.loss(outputs, targets)
        self._measure("fit", loss, outputs, targets)
        return loss + self._concrete_penalty() if self._learns_rates and self.adds_concrete_penalty else loss

    def _concrete_penalty(self) -> Tensor:
        """Returns the penalty of layers that learn their dropout rate; the logged loss doesn't include it."""
        penalty = concrete_penalty(self.network, training_samples(self.trainer))
        self.log("penalty/concrete_dropout", penalty.detach())
        return penalty

    @override
    def on_train_epoch_end(self) -> None:
        if self.adds_concrete_penalty:  # else the callback logs them
            for name, layer in concrete_layers(self.network).items():
                self.log(f"dropout/network.{name}", layer.p_logit.detach().sigmoid())

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate("validate", batch, batch_idx)

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate("test", batch, batch_idx)

    @override
    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | Prediction:
        """Returns probabilities (N, C), or numbers (N,) or (N, T); with their uncertainty where it is known."""
        inputs = batch[0]
        if self.predict_samples is not None:
            return self._uncertain_prediction(inputs, self.predict_samples)
        outputs = self(inputs)
        values = self.task.predictions(outputs)
        variances = self.task.variances(outputs)
        return values if variances is None else Prediction(values, variances.sqrt())

    def _uncertain_prediction(self, inputs: Tensor, samples: int) -> Prediction:
        noise: list[Tensor] = []  # predicted variances of the targets, pass by pass

        def predicted(outputs: Tensor) -> Tensor:
            variances = self.task.variances(outputs)
            noise.extend([] if variances is None else [variances])
            return self.task.predictions(outputs)

        kind: Literal["probabilities", "values"] = "probabilities" if self.task.predicts_classes else "values"
        found = monte_carlo_predict(self.network, inputs, num_samples=samples, outputs=kind, transform=predicted)
        std = (found.std.square() + torch.stack(noise).mean(0)).sqrt() if noise else found.std
        return Prediction(found.mean, std, found.predictive_entropy, found.mutual_information)

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        inputs, targets = batch
        outputs = self(inputs)
        if batch_idx == 0:
            self._logged.discard(stage)  # a step that is called directly starts no epoch
            check_outputs(outputs, self.num_outputs)
        self._measure(stage, self.task.plain_loss(outputs, targets), outputs, targets)

    def _measure(self, stage: str, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Updates the epoch's metrics with a batch; Lightning computes them when the epoch ends."""
        metrics: Any = self._metrics[stage]
        outputs = outputs.detach().clone()  # compiled code may write the next batch's into the same memory
        for name, metric in metrics.items():
            if name == "loss":
                metric.update(loss.detach().clone(), torch.tensor(len(targets)))
            else:
                metric.update(outputs, targets)
        if stage not in self._logged:
            self._logged.add(stage)
            values = {f"{_STAGES[stage]}/{name}": metric for name, metric in metrics.items()}
            self.log_dict(values, on_step=False, on_epoch=True, prog_bar=True)

    def _begin_epoch(self, stage: str) -> None:
        self._logged.discard(stage)
        metrics: Any = self._metrics[stage]
        for metric in metrics.values():
            metric.reset()

    @override
    def on_train_epoch_start(self) -> None:
        self._begin_epoch("fit")

    @override
    def on_validation_epoch_start(self) -> None:
        self._begin_epoch("validate")

    @override
    def on_test_epoch_start(self) -> None:
        self._begin_epoch("test")

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self._make_optimizer()
        scheduler = self._lr_scheduler(optimizer) if self._lr_scheduler else None
        self._configured = [dict(group, params=()) for group in optimizer.param_groups]
        if scheduler is None:
            return optimizer
        if isinstance(scheduler, ReduceLROnPlateau):
            monitor = getattr(scheduler, "monitor", "val/loss")  # Lightning's subclass has one, torch's class doesn't
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
        """Gives the task the training targets, and warns if a checkpoint restored other optimizer settings."""
        self._logged.discard("fit")  # where an epoch is resumed in its middle, it has no start
        self._masks = None if self._compiles else KeyedMasks(self.network)
        if self.task.needs_targets:
            self.task.prepare(training_targets(self.trainer))
        optimizer = self.optimizers(use_pl_optimizer=False)
        if self.trainer.ckpt_path is None or not isinstance(optimizer, torch.optim.Optimizer):
            return
        # A scheduler changes the rate, so its initial rate is compared; one that keeps no record of that isn't.
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
        """Scales the weights by the first batch if the initialization is LSUV."""
        if self.hparams.get("init") != "lsuv" or self._is_scaled:
            return
        self._is_scaled = True
        if any(is_parametrized(module) for module in self.network.modules()):
            raise SettingError(
                "init must not be 'lsuv' where weights are computed from others, as with SpectralNormalization or "
                "WeightStandardization"
            )
        lsuv_(self.network, batch[0], orthogonal=False)
        for parameter in self.network.parameters():  # every process has seen another batch
            parameter.data.copy_(self.trainer.strategy.broadcast(parameter.detach()))

    @override
    def on_train_batch_end(self, outputs: Any, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if self._masks is not None:
            self._masks.end()

    @override
    def on_train_end(self) -> None:
        self._masks = None

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._is_scaled = True
        # Only under a trainer: load_from_checkpoint has its own argument for strictness.
        if self._trainer is not None and self.strict_loading:
            check_same_structure(checkpoint.get("hyper_parameters", {}), self.hparams, self.structure)
            check_fits(checkpoint["state_dict"], self)
