"""What techniques have in common that average weights over training, and evaluate with the average."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.attach.evaluation import report_validation
from lightning_reg.attach.gradients import local
from lightning_reg.attach.held_weights import HeldWeights, norm_statistics, spectral_vectors, tensors_of
from lightning_reg.attach.recomputation import check_recomputable, recompute_statistics, trained_norms
from lightning_reg.attach.technique import Position, StepTechnique, callbacks_of, instance_number, instance_suffix
from lightning_reg.core.facts import Place
from lightning_reg.core.wrapping import around
from lightning_reg.settings import SettingError, check_choice

__all__ = ["Buffers", "Validate", "WeightAverage"]

Buffers = Literal["average", "copy", "recompute"]
Validate = Literal["averaged", "both"]
CHECKPOINT_KEY = "lightning_reg"  # callbacks' states are matched by their settings; these outlive a change of settings


class WeightAverage(StepTechnique):
    """Holds an average of the weights, and lets it and the trained weights change places for evaluation.

    The first such callback of a trainer gives the model its weights: its average is in the module while the fit
    validates, in the ``state_dict`` of checkpoints, and in the module when the fit has ended. Further ones only report
    on validation data, under a prefix. Where an exception ends the fit the trained weights are left in the module.

    Everything trainable is averaged, from the first update on at which it is trainable. Parametrized weights are
    averaged as they are before the parametrization, which so holds for the average, too.

    Args:
        buffers: What becomes of the running statistics of normalization layers.
        validate: Whether the module's own names report on the average, or on the trained weights and the prefix on the
            average.
    """

    place = Place.WEIGHTS
    position = Position.AVERAGING
    averages_weights: ClassVar[bool] = True
    prefix: ClassVar[str]

    def __init__(self, *, buffers: Buffers, validate: Validate) -> None:
        super().__init__()
        check_choice("buffers", buffers, get_args(Buffers))
        check_choice("validate", validate, get_args(Validate))
        self.buffers: Buffers = buffers
        self.validate: Validate = validate
        self._held = HeldWeights()
        self.reset()

    def _forget(self) -> None:
        self._has_stepped = False
        self._is_recomputed = False  # whether BatchNorm's statistics are those of the average as it is now
        self._parameters: list[nn.Parameter] = []
        self._names: list[str] = []
        self._trainable: list[bool] = []
        self._averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._norms: list[_BatchNorm] = []

    @abstractmethod
    def is_due(self, trainer: Trainer, has_stepped: bool) -> bool:
        """Says, once a training batch, whether the weights are taken into the average now.

        Args:
            trainer: At the end of the batch.
            has_stepped: Whether an optimizer stepped in it; several that did count as one.
        """

    @abstractmethod
    def update_(self, averages: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Takes the weights into the average, in place; the first time they have been copied instead.

        Args:
            averages: Of some tensors.
            values: The tensors.
        """

    @property
    def counters(self) -> dict[str, Any]:
        """What is saved beside weights: plain numbers and lists of numbers, by the names of attributes."""
        return {"updates": self.updates}

    @property
    def is_in(self) -> bool:
        """Whether the module has the averaged weights at this moment."""
        return self._held.is_in

    # When it runs

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._held = HeldWeights()
        self.reset()
        for each in callbacks_of(trainer):
            if isinstance(each, (StochasticWeightAveraging, WeightAveraging)):
                raise SettingError(
                    f"callbacks must not have a {type(each).__name__} with {type(self).__name__}: both evaluate with "
                    "averaged weights"
                )
        if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy)):
            raise SettingError(
                f"strategy must keep parameters apart with {type(self).__name__}, but is "
                f"{type(trainer.strategy).__name__}; use DDPStrategy or ModelParallelStrategy"
            )

    def reset(self) -> None:
        """Begins anew."""
        self.updates = 0
        self._is_final = False
        self._forget()

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._held.move(pl_module)
        loop = trainer.fit_loop.epoch_loop.val_loop

        def validate(inner: Any, *args: Any, **kwargs: Any) -> Any:
            if self._reports(trainer) and not trainer.sanity_checking and not loop.restarting:
                self._report(trainer, pl_module)
            return inner(*args, **kwargs)

        def state_dict(inner: Any) -> dict[str, Any]:  # what is saved without callbacks' states asks no callback
            saved: dict[str, Any] = inner()
            if self._gives_weights(trainer):
                self._held.save_into(saved, pl_module)
            return saved

        self.handles.append(around(loop, "run", validate))
        self.handles.append(around(trainer.strategy, "lightning_module_state_dict", state_dict))

    @override
    def release(self) -> None:
        # What is held stays, for checkpoints that are saved after the fit.
        self._forget()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.buffers == "recompute":
            check_recomputable(trainer, pl_module, type(self).__name__)
            self._norms = trained_norms(pl_module)

    @override
    def after_step(self, optimizer: Optimizer) -> None:
        self._has_stepped = True

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        has_stepped, self._has_stepped = self._has_stepped, False
        if self.is_due(trainer, has_stepped):
            self.take(pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        if self._is_fitting(trainer) and self._gives_weights(trainer) and not self._reports(trainer):
            self._put_in(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self._is_fitting(trainer):
            self._take_out(pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self._gives_weights(trainer):
            self._put_in(trainer, pl_module)
        self._is_final = True

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not self._is_final:  # what fails after the fit, a test for one, has the averaged weights
            self._take_out(pl_module)
        super().on_exception(trainer, pl_module, exception)

    # What it does

    def take(self, pl_module: LightningModule) -> None:
        """Takes the weights as they are now into the average.

        Args:
            pl_module: That has them.
        """
        if not self._parameters:
            named = [(name, each) for name, each in tensors_of(pl_module).items() if isinstance(each, nn.Parameter)]
            self._names, self._parameters = [name for name, _ in named], [each for _, each in named]
        trainable = [each.requires_grad for each in self._parameters]
        if trainable != self._trainable:
            self._trainable = trainable
            self._begin(pl_module)
        with torch.no_grad():
            if self.updates and self._averaged[0]:
                self.update_(*self._averaged)
        self.updates += 1
        self._is_recomputed = False
        if self.buffers == "recompute":
            self._norms = trained_norms(pl_module)

    def _begin(self, pl_module: LightningModule) -> None:
        """Copies what isn't averaged yet."""
        tensors = tensors_of(pl_module)
        averaged = [name for name, each in zip(self._names, self._trainable, strict=True) if each]
        if self.buffers == "average":
            averaged += [name for name in norm_statistics(pl_module) if name in tensors]
        with torch.no_grad():
            for name in averaged:
                if name not in self._held.values:
                    self._held.add(name, tensors[name])
            self._hold_buffers(pl_module, tensors)
        averaged = [name for name in averaged if name in self._held.values]
        self._averaged = (
            [local(self._held.values[name]) for name in averaged],
            [local(tensors[name]) for name in averaged],
        )

    def _hold_buffers(self, pl_module: LightningModule, tensors: dict[str, Tensor]) -> None:
        """Buffers that are computed for the average rather than averaged."""
        names = [vector for _, u, v, _ in spectral_vectors(pl_module) for vector in (u, v)]
        if self.buffers == "recompute":
            norms = set(trained_norms(pl_module))
            buffers = {id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)}
            names += [name for name, tensor in tensors.items() if id(tensor) in buffers]
        for name in names:
            if name in tensors and name not in self._held.values:
                self._held.add(name, tensors[name])

    def _put_in(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._held.values or self._held.is_in:
            return
        self._held.exchange(pl_module)
        if self.buffers == "recompute" and not self._is_recomputed and not trainer.sanity_checking:
            recompute_statistics(trainer, pl_module, self._norms)
            self._is_recomputed = True

    def _take_out(self, pl_module: LightningModule) -> None:
        if self._held.is_in:
            self._held.exchange(pl_module)

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._held.values:
            return
        self._put_in(trainer, pl_module)
        try:
            report_validation(trainer, f"{self.prefix}{instance_suffix(trainer, self)}")
        finally:
            self._take_out(pl_module)

    # Checkpoints

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self._held.values:
            weights: dict[str, dict[str, Tensor]] = {"trained": {}, "average": {}}
        else:
            gives = self._gives_weights(trainer)
            if gives and "state_dict" in checkpoint:
                self._held.save_into(checkpoint["state_dict"], pl_module)
            weights = self._held.state(pl_module, beside=gives)
        saved = {**weights, "counters": {**self.counters, "_is_recomputed": self._is_recomputed}}
        checkpoint.setdefault(CHECKPOINT_KEY, {})[self._key(trainer)] = saved

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get(CHECKPOINT_KEY, {}).get(self._key(trainer))
        if not self._is_fitting(trainer):
            self._held = HeldWeights()  # what was held belongs to other weights
        elif saved is not None:
            for name, value in saved["counters"].items():
                setattr(self, name, value)
            self._held.load(saved, pl_module)

    def _key(self, trainer: Trainer) -> str:
        return f"{type(self).__name__}_{instance_number(trainer, self) + 1}"

    # Who gives the model its weights

    @staticmethod
    def _is_fitting(trainer: Trainer) -> bool:
        return trainer.state.fn == TrainerFn.FITTING

    def _gives_weights(self, trainer: Trainer) -> bool:
        return next((each for each in callbacks_of(trainer) if isinstance(each, WeightAverage)), None) is self

    def _reports(self, trainer: Trainer) -> bool:
        return self.validate == "both" or not self._gives_weights(trainer)
