"""Schedules of a technique's strength over the course of training."""

import math
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_reg.core.lightning import planned_epochs
from lightning_reg.functional.annealing import annealed
from lightning_reg.settings import SettingError, check_choice, check_count, check_range

__all__ = ["ScheduledStrength", "StrengthSchedule", "check_never_zero", "check_schedule", "warn_if_never"]

_JUMPS = 4
_KINDS = ("constant", "linear", "cosine", "flat_cosine", "step")


@dataclass(frozen=True, kw_only=True)
class StrengthSchedule:
    """Factor on a technique's strength that moves from ``start`` to ``end`` in the course of training.

    The factor is ``start`` until ``begin``, moves to ``end`` over the following ``duration``, and stays there. It
    depends only on the position in training, so there is no state to save, and a resumed run goes on as the
    uninterrupted one. Every technique with a strength takes a schedule as its argument ``schedule``, and logs the
    factor as ``schedule/<technique>``.

    When to use: to let a network fit before it is regularized (rising), or to end on the plain objective (falling).

    Args:
        kind: Shape of the transition. ``"linear"``; ``"cosine"``: half a period, slow at both ends; ``"flat_cosine"``:
            ``start`` for half of ``duration``, then half a period; ``"step"``: ``jumps`` equal jumps at equal
            distances; ``"constant"``: ``end`` as soon as ``begin`` is reached.
        start: Factor at the beginning, at least 0; if None, 0, or 1 for ``"flat_cosine"``.
        end: Factor at the end, at least 0; if None, 1, or 0 for ``"flat_cosine"``.
        begin: Epoch or step at which the factor starts to move, at least 0.
        duration: Number of epochs or steps over which the factor moves, at least 1; if None, until the end of training.
            Not for ``"constant"``.
        jumps: Number of jumps of ``"step"``, at least 1; 4 if None. Not for other kinds.
        unit: Unit of ``begin`` and ``duration``, ``"epoch"`` or ``"step"``. With several optimizers, a step of any of
            them counts.

    Raises:
        SettingError: If a setting is out of its range.

    >>> schedule = StrengthSchedule(kind="linear", begin=2, duration=4)
    >>> [schedule.factor(epoch, 4) for epoch in range(8)]
    [0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    kind: Literal["constant", "linear", "cosine", "flat_cosine", "step"] = "linear"
    start: float | None = None
    end: float | None = None
    begin: int = 0
    duration: int | None = None
    jumps: int | None = None
    unit: Literal["epoch", "step"] = "epoch"

    def __post_init__(self) -> None:
        """Checks the settings."""
        check_choice("schedule.kind", self.kind, _KINDS)
        check_choice("schedule.unit", self.unit, ("epoch", "step"))
        for name in ("start", "end"):
            given = getattr(self, name)
            if given is not None:
                check_range(f"schedule.{name}", given, low=0)
        check_count("schedule.begin", self.begin, low=0)
        if self.jumps is not None:
            check_count("schedule.jumps", self.jumps)
            if self.kind != "step":
                raise SettingError(f"schedule.jumps must be left out with kind {self.kind!r}, but is {self.jumps}")
        if self.duration is not None:
            check_count("schedule.duration", self.duration)
            if self.kind == "constant":
                raise SettingError(f"schedule.duration must be left out with kind 'constant', but is {self.duration}")

    @property
    def bounds(self) -> tuple[float, float]:
        """Factors at the beginning and at the end."""
        start, end = (1.0, 0.0) if self.kind == "flat_cosine" else (0.0, 1.0)
        return start if self.start is None else self.start, end if self.end is None else self.end

    def factor(self, now: int, duration: int) -> float:
        """Returns the factor.

        Args:
            now: Number of finished epochs or steps.
            duration: Number of epochs or steps over which the factor moves.
        """
        start, end = self.bounds
        if self.kind == "constant":
            return end if now >= self.begin else start
        done = min(max(now - self.begin, 0) / duration, 1.0) if duration else float(now >= self.begin)
        if self.kind == "cosine":
            done = annealed(0.0, 1.0, done)
        if self.kind == "flat_cosine":
            done = annealed(0.0, 1.0, 2 * done - 1)
        if self.kind == "step":
            jumps = self.jumps or _JUMPS
            elapsed = min(max(now - self.begin, 0), duration)
            done = elapsed * jumps // duration / jumps if duration else done
        return start + (end - start) * done


def check_schedule(schedule: StrengthSchedule | None) -> None:
    """Raises if an argument isn't a schedule.

    Raises:
        SettingError: If it is neither a :class:`StrengthSchedule` nor None.
    """
    if schedule is not None and not isinstance(schedule, StrengthSchedule):
        raise SettingError(f"schedule must be a StrengthSchedule, but is {schedule!r}")


def check_never_zero(schedule: StrengthSchedule | None) -> None:
    """Raises if a schedule starts or ends at 0, for techniques that multiply a threshold, which must be positive.

    Raises:
        SettingError: If ``start`` or ``end`` isn't positive.
    """
    check_schedule(schedule)
    if schedule is not None:
        start, end = schedule.bounds
        check_range("schedule.start", start, low=0, low_open=True)
        check_range("schedule.end", end, low=0, low_open=True)


class ScheduledStrength:
    """Factor on one technique's strength in one fit; always 1 without a schedule.

    Raises:
        SettingError: If the schedule is to end with training, and the end isn't known or isn't after ``begin``.
    """

    def __init__(self, schedule: StrengthSchedule | None = None, trainer: Trainer | None = None) -> None:
        self._schedule = schedule
        self._duration = 0 if schedule is None or trainer is None else _duration(schedule, trainer)

    def now(self, trainer: Trainer) -> float:
        """Returns the factor in the trainer's current step."""
        if self._schedule is None:
            return 1.0
        done = trainer.current_epoch if self._schedule.unit == "epoch" else trainer.global_step
        return self._schedule.factor(done, self._duration)

    @property
    def is_off(self) -> bool:
        """Whether the factor is 0 from beginning to end."""
        if self._schedule is None:
            return False
        start, end = self._schedule.bounds
        return end == 0 and (start == 0 or _is_at_once(self._schedule))

    def log(self, pl_module: LightningModule, name: str) -> None:
        """Logs the factor as ``schedule/<name>``, if there is a schedule."""
        if self._schedule is not None:
            pl_module.log(f"schedule/{name}", self.now(pl_module.trainer), batch_size=1)  # see Run.log


def _is_at_once(schedule: StrengthSchedule) -> bool:
    return schedule.kind == "constant" and schedule.begin == 0


def warn_if_never(settings: object, trainer: Trainer, unit: Literal["epoch", "step"], first: int, *names: str) -> bool:
    """Warns that something never acts, because training is planned to end before.

    Args:
        settings: A technique or a schedule.
        trainer: Trainer in a fit; one of fast_dev_run is let go, which only tries the code out.
        unit: What ``first`` counts.
        first: Number of epochs or optimizer steps that training must have for it to act once.
        names: Names of the settings that decide this number.

    Returns:
        Whether it warned.
    """
    if first <= 1 or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Trainer.__init__ elsewhere
        return False
    end = _planned_end(trainer, unit)
    if first > end:
        given = " and ".join(f"{name} is {getattr(settings, name)}" for name in names)
        rank_zero_warn(
            f"{type(settings).__name__} has no effect: {given}, but training is planned to end after {int(end)} {unit}"
            f"{'' if end == 1 else 's'}"
        )
    return first > end


def _planned_end(trainer: Trainer, unit: Literal["epoch", "step"]) -> float:
    """Returns the number of epochs or optimizer steps that are planned; infinity where nobody knows it."""
    if unit == "epoch":
        return planned_epochs(trainer)
    steps = trainer.estimated_stepping_batches if trainer.lightning_module.automatic_optimization else -1
    return math.inf if steps < 0 else steps


def _duration(schedule: StrengthSchedule, trainer: Trainer) -> int:
    if schedule.kind == "constant" or schedule.duration is not None:
        warn_if_never(schedule, trainer, schedule.unit, schedule.begin + 1, "begin")
        return schedule.duration or 0
    if schedule.unit == "step" and not trainer.lightning_module.automatic_optimization:
        raise SettingError(
            "schedule.duration must be given in steps under manual optimization, where nobody knows how many there are"
        )
    end = _planned_end(trainer, schedule.unit)
    if math.isinf(end):
        raise SettingError(
            f"schedule.duration must be given in {schedule.unit}s, because nobody knows how many training has"
        )
    if schedule.begin >= end:
        raise SettingError(
            f"schedule.begin must be before the end of training, {schedule.unit} {int(end)}, but is {schedule.begin}"
        )
    # The last epoch or step that is trained has the factor `end`.
    return max(int(end) - 1 - schedule.begin, 0)
