"""Penalties of weights, added to gradients exactly as if the loss had contained them."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer, SparseAdam
from typing_extensions import override

from lightning_reg.attach.gradients import (
    AccumulationWindow,
    any_gradient,
    dense_gradient,
    gradient_scale,
    local,
    parameters_of,
    refuse_sharded,
    unscaled_loss,
    whole,
)
from lightning_reg.attach.schedules import ScheduledStrength, StrengthSchedule, check_schedule
from lightning_reg.attach.selection import as_patterns, select_parameters
from lightning_reg.attach.technique import GradientTechnique, Position, instance_suffix, logs_now
from lightning_reg.settings import SettingError

__all__ = ["WeightPenalty", "local_pairs"]


class WeightPenalty(GradientTechnique):
    """A penalty of weights alone: once per optimizer step, without a graph.

    A subclass gives the penalty's value and adds its gradient. It may also shrink weights after the step: a proximal
    step in the place of a part of the gradient.

    Args:
        include: Globs over parameter names that are penalised.
        exclude: Globs over parameter names that are not.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are spared.
        schedule: What the strength is multiplied by as training goes on.
    """

    position = Position.PENALTY
    tag: ClassVar[str]
    elementwise: ClassVar[bool] = True  # else it needs whole weights, and can't work on a shard
    matrices_only: ClassVar[bool] = False

    def __init__(
        self,
        *,
        include: Sequence[str],
        exclude: Sequence[str],
        exclude_norm_and_bias: bool,
        schedule: StrengthSchedule | None,
    ) -> None:
        super().__init__()
        check_schedule(schedule)
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.exclude_norm_and_bias = exclude_norm_and_bias
        self.schedule = schedule
        self.names: dict[nn.Parameter, str] = {}
        self._window = AccumulationWindow()
        self._strength = ScheduledStrength()
        self._suffix = ""
        self._loss: Tensor | None = None
        self._due: tuple[list[nn.Parameter], float] | None = None

    @abstractmethod
    def value(self, weights: list[Tensor], parameters: list[nn.Parameter]) -> Tensor:
        """Returns the penalty at full strength.

        Args:
            weights: Of the parameters, whole.
            parameters: Whose they are.
        """

    @abstractmethod
    def add_gradient_(self, parameters: list[nn.Parameter], factor: float | Tensor) -> None:
        """Adds the penalty's gradient to that of the parameters.

        Args:
            parameters: Each with a dense gradient.
            factor: What the strength is multiplied by.
        """

    @property
    def adds_gradient(self) -> bool:
        """Whether any part of the penalty is in the gradient."""
        return True

    @property
    def shrinks(self) -> bool:
        """Whether any part of the penalty is a proximal step after the optimizer's."""
        return False

    def shrink_(self, parameters: list[nn.Parameter], factor: float | Tensor) -> None:
        """Applies the proximal operator.

        Args:
            parameters: After the optimizer's step.
            factor: What the strength is multiplied by; contains the learning rate.
        """
        raise NotImplementedError

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._strength = ScheduledStrength(self.schedule, trainer)
        selected = select_parameters(
            pl_module,
            include=self.include,
            exclude=self.exclude,
            exclude_norm_and_bias=self.exclude_norm_and_bias,
            matrices_only=self.matrices_only,
        )
        if not self.elementwise:
            refuse_sharded(selected, type(self).__name__)
        self.names = {parameter: name for name, parameter in selected.items()}
        self._window = AccumulationWindow()
        self._suffix = instance_suffix(trainer, self)
        if self.shrinks:
            for optimizer in trainer.optimizers:
                _check_learning_rate(optimizer, type(self).__name__)
        if self.adds_gradient and any(isinstance(optimizer, SparseAdam) for optimizer in trainer.optimizers):
            raise SettingError(
                f"optimizer must not be SparseAdam with {type(self).__name__}, whose gradient is that of all weights; "
                "use another optimizer"
            )

    @override
    def release(self) -> None:
        self.names = {}
        self._window = AccumulationWindow()
        self._due = self._loss = None

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if not any_gradient(trainer):
            self._window = self._window.anew()
        if logs_now(trainer):
            self._loss = unscaled_loss(trainer, loss)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._window.count()

    @override
    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._due = None
        scheduled = self._strength.now(trainer)
        share = self._window.close(trainer)
        factor = share * scheduled
        if logs_now(trainer):
            self._log(pl_module, scheduled)
        if share == 0 or self._strength.is_off:
            return
        # Asked anew at each step, because layers may be frozen and thawed in between.
        penalised = [each for each in parameters_of(optimizer) if each in self.names]
        fresh = self._window.serve(penalised)
        if fresh and self.adds_gradient:
            for parameter in fresh:  # also where a schedule has the penalty at 0 now, as the loss would
                dense_gradient(parameter)
            scale = gradient_scale(trainer, optimizer)
            if factor:
                self.add_gradient_(fresh, factor if scale is None else factor * scale)
        if penalised and self.shrinks:  # each optimizer by its own learning rate
            self._due = penalised, factor

    @override
    def after_step(self, optimizer: Optimizer) -> None:
        if self._due is None:
            return
        (penalised, factor), self._due = self._due, None
        # A fused optimizer is called nevertheless, and skips by itself: then nothing is shrunk either.
        skipped = getattr(optimizer, "found_inf", None)
        chosen = set(penalised)
        for group in optimizer.param_groups:
            parameters = [each for each in group["params"] if each in chosen]
            if parameters:
                rate = group["lr"] * factor
                self.shrink_(parameters, rate if skipped is None else rate * (1 - skipped.squeeze()))

    def _log(self, pl_module: LightningModule, scheduled: float) -> None:
        # Of all optimizers together, also of those that toggle_optimizer froze for the moment.
        toggled = getattr(pl_module, "_param_requires_grad_state", {})
        parameters = [each for each in self.names if each.requires_grad or toggled.get(each)]
        self._strength.log(pl_module, self.tag + self._suffix)
        if not parameters:
            return
        weights = [whole(each) for each in parameters]
        value = self.value(weights, parameters) * scheduled
        values = {"": value}
        if self._loss is not None:
            values["_share"] = value / (value + self._loss.abs())
        if self.shrinks:
            zeros = torch.stack([weight.numel() - weight.count_nonzero() for weight in weights]).sum()
            values["_zeros"] = zeros / sum(weight.numel() for weight in weights)
        for kind, entry in values.items():
            pl_module.log(f"penalty/{self.tag}{self._suffix}{kind}", entry)


def local_pairs(parameters: Sequence[nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns this process's parts of the gradients and of the weights.

    Args:
        parameters: Each with a gradient.
    """
    return [local(dense_gradient(each)) for each in parameters], [local(each) for each in parameters]


def _check_learning_rate(optimizer: Optimizer, technique: str) -> None:
    if any("lr" not in group for group in optimizer.param_groups):
        raise SettingError(
            f"proximal must be False with {type(optimizer).__name__}, whose groups have no lr: {technique} shrinks "
            "weights by lr times its strength"
        )
