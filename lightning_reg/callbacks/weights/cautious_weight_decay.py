"""Weight decay where the optimizer moves toward zero as well."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.core.facts import Log, Place, Position
from lightning_reg.core.gradients import local, refuse_complex
from lightning_reg.core.schedules import ScheduledStrength, StrengthSchedule, check_schedule
from lightning_reg.core.selection import Selection, as_patterns
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run, Step
from lightning_reg.core.technique import Technique
from lightning_reg.functional.weights.cautious_decay import corrected_rate, decay_cautiously_
from lightning_reg.settings import SettingError, check_range

__all__ = ["CautiousWeightDecay"]


class CautiousWeightDecay(Technique):
    """Shrinks weights after each step, but only those that the optimizer's own step moved toward zero.

    What it does: where the step u of an entry has the sign of the weight x, the weight becomes x − η(u + λx); elsewhere
    the optimizer's step alone counts. So decay never works against the loss, and the loss's own minima stay minima.

    When to use: instead of an optimizer's ``weight_decay``, at the same strength. When not: beside it; set that to 0.

    ``corrected`` names weights that a normalization follows, which is most of them but for the head: their decay is
    λη²/η_max rather than λη, so that gradients don't grow as the learning rate falls. η_max is the group's ``max_lr``
    or ``initial_lr``, as schedulers set it, and never below η.

    Cost: one copy of the decayed weights, and two passes over them per optimizer step. No state.

    Interacts with: learning-rate schedules, since decay is λ times the group's learning rate, as in AdamW.

    Args:
        weight: Strength λ, at least 0; usual values are those of AdamW's ``weight_decay``, 1e-3 to 0.1.
        include: Globs over names of parameters that are decayed.
        exclude: Globs over names of parameters that are left out.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are left out.
        corrected: Globs over names of decayed weights that a normalization follows; none where empty.
        schedule: Factor of the strength over the training; constant where None.

    Logs:
        ``schedule/cautious_weight_decay``, the factor, where there is a ``schedule``, at the steps the trainer logs.

    Raises:
        SettingError: If ``weight`` is negative or not finite, a glob matches nothing, weights are complex, or the
            optimizer is LBFGS or has a group without a learning rate.

    Reference:
        Lizhang Chen, Jonathan Li, Kaizhao Liang, Baiyu Su, Cong Xie, Nuo Wang Pierse, Chen Liang, Ni Lao, Qiang Liu:
        Cautious Weight Decay, 2025, arXiv:2510.12402. Aaron Defazio: Why Gradients Rapidly Increase Near the End of
        Training, 2025, arXiv:2506.02285.

    >>> CautiousWeightDecay(weight=0.01).weight
    0.01
    """

    place = Place.WEIGHTS
    position = Position.CONSTRAINT
    changes_gradients = True  # in so far as it has to know when a step begins, and that it is one
    usual_ranges = (Log("weight", 1e-4, 1e-1),)

    def __init__(
        self,
        *,
        weight: float,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        exclude_norm_and_bias: bool = True,
        corrected: Sequence[str] = (),
        schedule: StrengthSchedule | None = None,
    ) -> None:
        check_range("weight", weight, low=0)
        check_schedule(schedule)
        super().__init__()
        self.weight = weight
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.exclude_norm_and_bias = exclude_norm_and_bias
        self.corrected = as_patterns("corrected", corrected) if corrected else ()
        self.schedule = schedule

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return CautiousSession(self, run)


@dataclass(eq=False)
class CautiousSession(Session[CautiousWeightDecay]):
    """One fit, with copies of the weights from before the current step."""

    selection: Selection = field(init=False)
    corrected: Selection | None = field(init=False)
    strength: ScheduledStrength = field(init=False)
    before: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    factor: float = 0.0

    def __post_init__(self) -> None:
        self.selection = Selection.by(self.technique, self.run.module)
        patterns, module = self.technique.corrected, self.run.module
        exclude = self.technique.exclude
        self.corrected = Selection(module, include=patterns, exclude=exclude, setting="corrected") if patterns else None
        self.strength = ScheduledStrength(self.technique.schedule, self.run.trainer)
        name = type(self.technique).__name__
        refuse_complex(self.selection.names, name, "exclude it")
        for optimizer in self.run.trainer.optimizers:
            if any("lr" not in group for group in optimizer.param_groups):
                raise SettingError(f"{name} must be left out with {type(optimizer).__name__}, whose groups have no lr")

    @override
    def before_step(self, step: Step) -> None:
        self.factor = self.technique.weight * self.strength.now(self.run.trainer)
        if step.logs:
            suffix = self.technique.suffix(self.run.trainer)
            self.strength.log(self.run.module, f"cautious_weight_decay{suffix}")
        if self.factor:
            self._copy(self.selection.of(step.parameters))

    def _copy(self, parameters: list[nn.Parameter]) -> None:
        weights = [local(parameter) for parameter in parameters]
        for parameter, weight in zip(parameters, weights, strict=True):
            memory = self.before.get(parameter)
            if memory is None or memory.shape != weight.shape:
                self.before[parameter] = torch.empty_like(weight)
        if parameters:
            torch._foreach_copy_([self.before[parameter] for parameter in parameters], weights)

    @override
    def after_step(self, step: Step) -> None:
        if not self.factor:
            return
        chosen = set(self.selection.of(step.parameters))
        for group in step.optimizer.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter in chosen]
            corrected = [] if self.corrected is None else self.corrected.of(parameters)
            known = set(corrected)
            self._decay(step, [parameter for parameter in parameters if parameter not in known], group["lr"])
            highest = max(group["lr"], *(group.get(name) or 0.0 for name in ("initial_lr", "max_lr")))
            self._decay(step, corrected, corrected_rate(group["lr"], highest))

    def _decay(self, step: Step, parameters: list[nn.Parameter], rate: float | Tensor) -> None:
        if parameters:
            # A fused optimizer skips by itself: then the weights haven't moved, and nothing is decayed.
            share = rate * self.factor * (1 if step.skipped is None else 1 - step.skipped)
            before = [self.before[parameter] for parameter in parameters]
            decay_cautiously_([local(parameter) for parameter in parameters], before, share)
