"""Penalties on weights, added to gradients exactly as if the loss had contained them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer, SparseAdam
from typing_extensions import override

from lightning_reg.core.facts import PENALTY_CHARTS, Chart, Place, Position
from lightning_reg.core.gradients import dense_gradient, local, refuse_sharded, whole
from lightning_reg.core.lightning import toggled_parameters
from lightning_reg.core.schedules import ScheduledStrength, StrengthSchedule, check_schedule
from lightning_reg.core.selection import Selection, as_patterns
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run, Step
from lightning_reg.core.technique import Technique
from lightning_reg.settings import SettingError

__all__ = ["PenaltySession", "WeightPenalty"]


class WeightPenalty(Technique):
    """A penalty on weights, added once per optimizer step, without a graph.

    It joins before Lightning's clipping, and before the module's ``on_after_backward`` under automatic optimization. A
    mask that is applied to gradients elsewhere, as by a hook of a tensor, doesn't hold for it: ``exclude`` does.

    A subclass computes the penalty's value and adds its gradient. It may also shrink weights after the step: a proximal
    step in place of the gradient.

    Args:
        include: Globs over names of parameters that are penalized.
        exclude: Globs over names of parameters that are left out.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are left out.
        schedule: Factor of the strength over the course of training; constant where None.
        group: ``"output"`` for units of the weights that lead into them, ``"input"`` for those that lead out of them.
    """

    place = Place.GRADIENT
    position = Position.PENALTY
    charts = (
        *PENALTY_CHARTS,
        Chart("Penalties", "weights that are exactly zero", r"penalty/.*_zeros$", needs="shrinks"),
    )
    changes_gradients = True
    tag: ClassVar[str]
    # Whether it gets weights unit by unit: only matrices and filters, unsharded, with the units in the first dimension.
    by_unit: ClassVar[bool] = False

    def __init__(
        self,
        *,
        include: Sequence[str],
        exclude: Sequence[str],
        exclude_norm_and_bias: bool,
        schedule: StrengthSchedule | None,
        group: Literal["output", "input"] = "output",
    ) -> None:
        super().__init__()
        check_schedule(schedule)
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.exclude_norm_and_bias = exclude_norm_and_bias
        self.schedule = schedule
        self.group = group

    @property
    def adds_gradient(self) -> bool:
        """Whether any part of the penalty is added to the gradient."""
        return True

    @property
    def shrinks(self) -> bool:
        """Whether any part of the penalty is a proximal step after the optimizer's."""
        return False

    def value(self, weights: list[Tensor]) -> Tensor:
        """Returns the penalty at full strength."""
        raise NotImplementedError

    def add_gradient_(self, weights: list[Tensor], gradients: list[Tensor], factor: float | Tensor) -> None:
        """Adds the penalty's gradient, times a factor, to those of the loss."""
        raise NotImplementedError

    def shrink_(self, weights: list[Tensor], factor: float | Tensor) -> None:
        """Applies the proximal operator; the factor contains the learning rate."""
        raise NotImplementedError

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return PenaltySession(self, run)


@dataclass(eq=False)
class PenaltySession(Session[WeightPenalty]):
    """One fit of a penalty."""

    selection: Selection = field(init=False)
    strength: ScheduledStrength = field(init=False)
    name: str = field(init=False)
    # Parameters to shrink after each optimizer's step, and the factor.
    due: dict[Optimizer, tuple[list[nn.Parameter], float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        technique, run = self.technique, self.run
        self.selection = Selection.by(technique, run.module, by_unit=technique.by_unit, group=technique.group)
        self.strength = ScheduledStrength(technique.schedule, run.trainer)
        self.name = technique.tag + technique.suffix(run.trainer)
        if technique.by_unit:
            refuse_sharded(self.selection.names, type(technique).__name__)
        self._check_optimizers()
        if technique.shrinks:
            self._check_computed()

    def _check_computed(self) -> None:
        """Raises where weight normalization divides a selected weight by its norm, which would become 0."""
        for part in self.run.module.modules():
            is_weight_norm = isinstance(part, ParametrizationList) and isinstance(part[0], parametrizations._WeightNorm)
            divided = part.original1 if is_weight_norm else None
            if isinstance(divided, nn.Parameter) and divided in self.selection.names:
                raise SettingError(
                    f"exclude must name {self.selection.names[divided]}, or proximal be False, with "
                    f"{type(self.technique).__name__}: no weight can be computed of what is shrunk to zero"
                )

    def _check_optimizers(self) -> None:
        technique = self.technique
        for optimizer in self.run.trainer.optimizers:
            if technique.shrinks and any("lr" not in group for group in optimizer.param_groups):
                raise SettingError(
                    f"proximal must be False with {type(optimizer).__name__}, whose groups have no lr: "
                    f"{type(technique).__name__} shrinks weights by lr times its strength"
                )
            if technique.adds_gradient and isinstance(optimizer, SparseAdam):
                raise SettingError(
                    f"optimizer must not be SparseAdam with {type(technique).__name__}, whose gradient is that of all "
                    "weights; use another optimizer"
                )

    # The penalty itself, for sessions with state

    def value(self, parameters: list[nn.Parameter], weights: list[Tensor]) -> Tensor:
        """Returns the penalty at full strength."""
        return self.technique.value(weights)

    def add_gradient_(
        self, parameters: list[nn.Parameter], weights: list[Tensor], gradients: list[Tensor], factor: float | Tensor
    ) -> None:
        """Adds the penalty's gradient, times a factor, to those of the loss."""
        self.technique.add_gradient_(weights, gradients, factor)

    # When it acts

    @override
    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        self.due.pop(step.optimizer, None)
        scheduled = self.strength.now(self.run.trainer)
        if step.logs:
            self._log(step, scheduled)
        if step.share == 0 or self.strength.is_off:
            return
        # Selected at each step, because layers may be frozen and unfrozen in between.
        penalized = self.selection.of(step.parameters)
        fresh = [parameter for parameter in penalized if parameter in step.fresh]
        factor = step.share * scheduled
        if fresh and self.technique.adds_gradient:
            # Also while a schedule's factor is 0: a penalty in the loss would give a gradient of zeros, too.
            gradients = self._arranged([dense_gradient(parameter) for parameter in fresh], fresh)
            if factor:
                self.add_gradient_(fresh, self._arranged(fresh, fresh), gradients, step.scaled(factor))
        if penalized and self.technique.shrinks:  # by the learning rate of each optimizer
            self.due[step.optimizer] = penalized, factor

    @override
    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        penalized, factor = self.due.pop(step.optimizer, ([], 0.0))
        if not penalized:
            return
        chosen = set(penalized)
        for group in step.optimizer.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter in chosen]
            if parameters:
                rate = group["lr"] * factor
                # If a fused optimizer skips the step by itself, nothing is shrunk either.
                self.technique.shrink_(
                    self._arranged(parameters, parameters), rate if step.skipped is None else rate * (1 - step.skipped)
                )

    def _arranged(self, tensors: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Returns views of this process's shards, arranged as the penalty expects them."""
        if self.technique.by_unit:
            return self.selection.units(tensors, parameters)
        # Nothing records a graph here. A view without one, of each of thousands of weights, costs more than arithmetic.
        return [local(tensor) if isinstance(tensor, DTensor) else tensor for tensor in tensors]

    def _log(self, step: Step, scheduled: float) -> None:
        # Parameters of all optimizers together, also those that toggle_optimizer froze for the moment.
        toggled = toggled_parameters(self.run.module)
        parameters = [chosen for chosen in self.selection.names if chosen.requires_grad or toggled.get(chosen)]
        self.strength.log(self.run.module, self.name)
        if not parameters:
            return
        weights = [whole(parameter) for parameter in parameters]
        value = self.value(parameters, self._arranged(weights, parameters)) * scheduled
        step.log(f"penalty/{self.name}", value)
        if step.loss is not None:
            step.log(f"penalty/{self.name}_share", value / (value + step.loss.abs()))
        if self.technique.shrinks:
            zeros = torch.stack([weight.numel() - weight.count_nonzero() for weight in weights]).sum()
            step.log(f"penalty/{self.name}_zeros", zeros / sum(weight.numel() for weight in weights))
