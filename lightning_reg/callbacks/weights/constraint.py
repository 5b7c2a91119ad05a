"""Constraints on weights, enforced after every optimizer step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from lightning_reg.core.facts import Place, Position
from lightning_reg.core.gradients import local, refuse_sharded
from lightning_reg.core.schedules import ScheduledStrength, StrengthSchedule
from lightning_reg.core.selection import Selection, as_patterns
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run, Step, trainable
from lightning_reg.core.technique import Technique

__all__ = ["Constraint"]


class Constraint(Technique):
    """Projects weights onto an allowed set, in place, after each step of the optimizer that they belong to.

    Args:
        include: Globs over names of parameters that are constrained.
        exclude: Globs over names of parameters that are left out.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are left out.
        group: Weights that make up a unit: ``"output"``, those that lead into it, or ``"input"``, those that lead out
            of it.
        schedule: Factor of the strength over the training, for constraints that have one; constant where None.
    """

    place = Place.WEIGHTS
    position = Position.CONSTRAINT
    tag: ClassVar[str]
    by_unit: ClassVar[bool] = True  # else entry by entry

    def __init__(
        self,
        *,
        include: Sequence[str],
        exclude: Sequence[str],
        exclude_norm_and_bias: bool,
        group: str = "output",
        schedule: StrengthSchedule | None = None,
    ) -> None:
        super().__init__()
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.exclude_norm_and_bias = exclude_norm_and_bias
        self.group = group
        self.schedule = schedule

    def project_(self, units: list[Tensor], factor: float) -> None:
        """Projects weights in place; where the constraint is ``by_unit``, their first dimension indexes the units."""
        raise NotImplementedError

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return ConstraintSession(self, run)


@dataclass(eq=False)
class ConstraintSession(Session[Constraint]):
    """One fit of a constraint."""

    selection: Selection = field(init=False)
    strength: ScheduledStrength = field(init=False)
    factor: float = 1.0

    def __post_init__(self) -> None:
        technique = self.technique
        self.strength = ScheduledStrength(technique.schedule, self.run.trainer)
        self.selection = Selection.by(technique, self.run.module, by_unit=technique.by_unit, group=technique.group)
        if technique.by_unit:
            refuse_sharded(self.selection.names, type(technique).__name__)

    @override
    def before_step(self, step: Step) -> None:
        self.factor = self.strength.now(self.run.trainer)
        if step.logs:
            self.strength.log(self.run.module, self.technique.tag + self.technique.suffix(self.run.trainer))

    @override
    def after_step(self, step: Step) -> None:
        chosen = self.selection.of(trainable(step.optimizer))
        if chosen:
            by_unit = self.technique.by_unit
            units = self.selection.units(chosen, chosen) if by_unit else [local(parameter) for parameter in chosen]
            self.technique.project_(units, self.factor)
