"""Dropout whose rate moves as training goes on."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_reg.attach.schedules import ScheduledStrength, StrengthSchedule, check_schedule
from lightning_reg.attach.selection import as_patterns, select_names
from lightning_reg.attach.technique import Technique, callbacks_of, instance_suffix, logs_now
from lightning_reg.core.facts import Place
from lightning_reg.nn.rates import Rate, rates
from lightning_reg.settings import SettingError

__all__ = ["DropoutSchedule"]


class DropoutSchedule(Technique):
    """Moves the rate of every dropout-like layer: up (a curriculum) or down (annealing).

    What it does: before each training batch, every rate is its own value times the schedule's factor. It knows torch's
    dropout, attention and recurrent layers, this package's, what ``InsertDropout`` and its fellows inserted, and the
    layers of others that have "drop" in their name and a rate. When training ends, rates are what they were.

    When to use: rising, so that a network fits before it is regularized; falling, so that it ends on the network that
    is evaluated. When not: beside ``ConcreteDropout``, which learns its rate and is left alone.

    Cost: none on the device. No state.

    Interacts with: torch.compile, which compiles anew for each of the first eight rates, and then gives up; with it,
    use a schedule of few jumps, ``StrengthSchedule(kind="step")``. Dropout that is a call of a function rather than a
    layer isn't seen.

    Args:
        schedule: What every rate is multiplied by; a linear rise from 0 to 1 over the whole training where None.
        include: Globs over names of layers.
        exclude: Globs over names of layers that are left out.

    Logs:
        ``schedule/dropout``, the factor, at the steps the trainer logs.

    Raises:
        SettingError: If a pattern matches nothing, no layer drops anything, or a rate would reach 1.

    Reference:
        Pietro Morerio et al.: Curriculum Dropout, ICCV 2017, arXiv:1703.06229, which rises exponentially. Annealing:
        Steven J. Rennie, Vaibhava Goel, Samuel Thomas: Annealed Dropout Training of Deep Networks, SLT 2014.

    >>> DropoutSchedule(schedule=StrengthSchedule(kind="cosine", start=1.0, end=0.0)).schedule.kind
    'cosine'
    """

    place = Place.FORWARD

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
        self._rates: list[tuple[Rate, float]] = []
        self._strength = ScheduledStrength()
        self._suffix = ""

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = [rate for rate in rates(pl_module) if rate.value > 0]
        if not found:
            raise SettingError("DropoutSchedule must have a layer with a rate above 0, but the module has none")
        names = [rate.name for rate in found]
        chosen = select_names(names, include=self.include, exclude=self.exclude, kind="layer with a rate above 0")
        self._rates = [(rate, rate.value) for rate in found if rate.name in chosen]
        self._check_alone(trainer)
        highest = max(self.schedule.start, self.schedule.end)
        for rate, value in self._rates:
            if value * highest >= 1:
                raise SettingError(
                    f"schedule must keep every rate below 1, but {rate.name} has {value} and is multiplied by {highest}"
                )
        self._strength = ScheduledStrength(self.schedule, trainer)
        self._suffix = instance_suffix(trainer, self)

    def _check_alone(self, trainer: Trainer) -> None:
        others = [each for each in callbacks_of(trainer) if isinstance(each, DropoutSchedule) and each is not self]
        moved = {(id(rate.holder), rate.attribute) for each in others for rate, _ in each._rates}
        for rate, _ in self._rates:
            if (id(rate.holder), rate.attribute) in moved:
                raise SettingError(f"include must leave {rate.name} out in all but one DropoutSchedule")

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        factor = self._strength.now(trainer)
        for rate, value in self._rates:
            rate.move(value * factor)
        if logs_now(trainer):
            self._strength.log(pl_module, f"dropout{self._suffix}")

    @override
    def release(self) -> None:
        for rate, value in self._rates:
            if hasattr(rate.holder, rate.attribute):  # a layer may be plain again
                rate.move(value)
        self._rates = []
