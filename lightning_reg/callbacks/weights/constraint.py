"""Constraints on weights, enforced after every optimizer step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import ParametrizationList
from typing_extensions import override

from lightning_reg.core.facts import Place, Position
from lightning_reg.core.gradients import local, refuse_sharded
from lightning_reg.core.schedules import ScheduledStrength, StrengthSchedule
from lightning_reg.core.selection import Selection, as_patterns
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run, Step, trainable
from lightning_reg.core.technique import Technique
from lightning_reg.nn import StandardizedWeight
from lightning_reg.settings import SettingError

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
    # What computes weights of others that don't keep to a constraint because these do.
    undone_by: ClassVar[tuple[type, ...]] = (parametrizations._Orthogonal, StandardizedWeight)

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
        self._check_computed()

    def _check_computed(self) -> None:
        """Raises where a layer computes its weight of what is constrained, in a way that undoes the constraint."""
        name = type(self.technique).__name__
        for source, computing in _computed(self.run.module):
            if source in self.selection.names and isinstance(computing, self.technique.undone_by):
                raise SettingError(
                    f"exclude must name {self.selection.names[source]} with {name}, because "
                    f"{type(computing).__name__.lstrip('_')} computes the layer's weight of it, for which the "
                    "constraint then doesn't hold"
                )

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


def _computed(module: nn.Module) -> Iterator[tuple[nn.Parameter, object]]:
    """Yields parameters of which layers compute others, and what does so."""
    for part in module.modules():
        if isinstance(part, ParametrizationList):
            yield from ((source, step) for source in part.parameters(recurse=False) for step in part)
        for hook in () if isinstance(part, ScriptModule) else part._forward_pre_hooks.values():
            attribute = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
            sources = (part._parameters.get(f"{attribute}_{kind}") for kind in ("orig", "g", "v"))
            yield from ((source, hook) for source in sources if source is not None)
