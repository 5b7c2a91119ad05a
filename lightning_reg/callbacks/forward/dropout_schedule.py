"""Dropout whose rate moves as training goes on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from lightning_reg.core.facts import SCHEDULE_CHART, Place
from lightning_reg.core.lightning import logs_now
from lightning_reg.core.schedules import ScheduledStrength, StrengthSchedule, check_schedule
from lightning_reg.core.selection import as_patterns, select_names
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.nn.rates import Rate, rates
from lightning_reg.settings import SettingError

__all__ = ["DropoutSchedule"]


class DropoutSchedule(Technique):
    """Moves the rate of every dropout-like layer: up (a curriculum) or down (annealing).

    What it does: before each training batch, every rate is its own value times the schedule's factor. It knows torch's
    dropout, attention and recurrent layers, this package's, what ``InsertDropout`` and its like insert, and the layers
    of others that have "drop" in their name and a rate. When training ends, the original rates are restored.

    When to use: rising, so that a network fits before it is regularized; falling, so that it ends on the network that
    is evaluated. Early dropout (a fall over the first epochs) helps networks that underfit, late stochastic depth those
    that overfit. When not: beside ``ConcreteDropout``, which learns its rate and is left alone.

    Cost: none on the device. No state.

    Interacts with: torch.compile, which recompiles for each of the first eight rates, and then gives up; with it, use a
    schedule of few jumps, ``StrengthSchedule(kind="step")``. Dropout that is called as a function rather than a layer
    isn't seen.

    Args:
        schedule: Factor of every rate; a linear rise from 0 to 1 over the whole training where None.
        include: Globs over names of layers.
        exclude: Globs over names of layers that are left out.

    Logs:
        ``schedule/dropout``, the factor, at the steps the trainer logs.

    Raises:
        SettingError: If a pattern matches nothing, no layer drops anything, or a rate would reach 1.

    Reference:
        Pietro Morerio et al.: Curriculum Dropout, ICCV 2017, arXiv:1703.06229, which rises exponentially. Annealing:
        Steven J. Rennie, Vaibhava Goel, Samuel Thomas: Annealed Dropout Training of Deep Networks, SLT 2014. Early
        and late: Zhuang Liu, Zhiqiu Xu, Joseph Jin, Zhiqiang Shen, Trevor Darrell: Dropout Reduces Underfitting, ICML
        2023, arXiv:2303.01500.

    >>> DropoutSchedule(schedule=StrengthSchedule(kind="cosine", start=1.0, end=0.0)).schedule.kind
    'cosine'
    """

    place = Place.FORWARD
    charts = (SCHEDULE_CHART,)

    def __init__(
        self,
        *,
        schedule: StrengthSchedule | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__()
        check_schedule(schedule)
        self.schedule = StrengthSchedule() if schedule is None else schedule
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return RatesSession(self, run)


@dataclass(eq=False)
class RatesSession(Session[DropoutSchedule]):
    """One fit: the rates with their original values, and the factor that they are multiplied by."""

    rates: list[tuple[Rate, float]] = field(init=False)
    strength: ScheduledStrength = field(init=False)
    name: str = field(init=False)

    def __post_init__(self) -> None:
        technique, run = self.technique, self.run
        found = [rate for rate in rates(run.module) if rate.value > 0]
        if not found:
            raise SettingError("DropoutSchedule must have a layer with a rate above 0, but the module has none")
        names = [rate.name for rate in found]
        kind = "layer with a rate above 0"
        chosen = select_names(names, include=technique.include, exclude=technique.exclude, kind=kind)
        self.rates = [(rate, rate.value) for rate in found if rate.name in chosen]
        self._check_alone()
        highest = max(technique.schedule.bounds)
        for rate, value in self.rates:
            if value * highest >= 1:
                raise SettingError(
                    f"schedule must keep every rate below 1, but {rate.name} has {value} and is multiplied by {highest}"
                )
        self.strength = ScheduledStrength(technique.schedule, run.trainer)
        self.name = f"dropout{technique.suffix(run.trainer)}"

    def _check_alone(self) -> None:
        others = [rate for session in self.run.sessions_of(RatesSession) for rate, _ in session.rates]
        moved = {(id(rate.holder), rate.attribute) for rate in others}
        for rate, _ in self.rates:
            if (id(rate.holder), rate.attribute) in moved:
                raise SettingError(f"include must leave {rate.name} out in all but one DropoutSchedule")

    @override
    def batch_starts(self, batch_idx: int) -> None:
        factor = self.strength.now(self.run.trainer)
        for rate, value in self.rates:
            rate.move(value * factor)
        if logs_now(self.run.trainer):
            self.strength.log(self.run.module, self.name)

    @override
    def ends(self, exception: BaseException | None) -> None:
        for rate, value in self.rates:
            if hasattr(rate.holder, rate.attribute):  # a layer may be plain again
                rate.move(value)
