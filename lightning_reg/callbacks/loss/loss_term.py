"""Terms that need activations or predictions, added to the loss that a training step returns."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_reg.core.copies.repetition import loss_of
from lightning_reg.core.facts import PENALTY_CHARTS, Chart, Place
from lightning_reg.core.lightning import logs_now
from lightning_reg.core.schedules import ScheduledStrength, StrengthSchedule, check_schedule
from lightning_reg.core.session import Session
from lightning_reg.core.technique import Technique
from lightning_reg.settings import SettingError

__all__ = ["LossTerm", "TermSession"]


class LossTerm(Technique):
    """Watches the training step and adds a term to the loss for backward; the logged loss isn't changed.

    A subclass creates a :class:`TermSession`, which computes the term.

    Args:
        schedule: Factor of the strength over the course of training; constant where None.
    """

    place = Place.LOSS
    charts: ClassVar[tuple[Chart, ...]] = PENALTY_CHARTS
    adds_to_loss = True
    tag: ClassVar[str]

    def __init__(self, *, schedule: StrengthSchedule | None) -> None:
        super().__init__()
        check_schedule(schedule)
        self.schedule = schedule

    @property
    def is_idle(self) -> bool:
        """Whether the strength is 0."""
        return False


@dataclass(eq=False)
class TermSession(Session[LossTerm]):
    """One fit of a term.

    Attributes:
        strength: Factor of the term by its schedule.
        name: Name of the term in logged tags.
        is_checked: Whether the term has been computed once without an error.
    """

    strength: ScheduledStrength = field(init=False)
    name: str = field(init=False)
    is_checked: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        technique, run = self.technique, self.run
        if not run.module.automatic_optimization:
            raise SettingError(
                f"automatic_optimization must be True with {type(technique).__name__}: under manual optimization its "
                "term can't reach the loss that you hand to manual_backward; add it there"
            )
        self.strength = ScheduledStrength(technique.schedule, run.trainer)
        self.name = technique.tag + technique.suffix(run.trainer)
        self._attach()

    def _attach(self) -> None:
        self.run.around_step("training_step", self._step)  # inside autocast, where there is one

    def watching(self) -> AbstractContextManager[Any]:
        """Returns a context in which a training step runs, and which records what the term needs."""
        return nullcontext()

    def watched_batch(self, batch: Any) -> Any:
        """Returns the batch for a watched training step.

        Args:
            batch: Batch of the trainer, which isn't changed.
        """
        return batch

    def term(self) -> Tensor:
        """Returns the term at full strength, from what the latest training step computed."""
        raise NotImplementedError

    def term_of(self, loss: Tensor) -> Tensor:
        """Returns the term at full strength, for terms that also depend on the training step's loss.

        Args:
            loss: Mean over samples.
        """
        return self.term()

    def _step(self, training_step: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        factor = self.strength.now(self.run.trainer)
        # The first step is watched even if a schedule begins at 0: a term that can't be computed is an error now.
        if self.technique.is_idle or (factor == 0 and self.is_checked):
            self._log({})
            return training_step(batch, *args, **kwargs)
        batch = self.watched_batch(batch)
        with self.watching():
            output = training_step(batch, *args, **kwargs)
            loss = loss_of(output)
            if loss is None:  # this batch is skipped
                return output
            with torch._C.DisableTorchFunction():  # modes that watch the user's calls must not see these
                term: Tensor = factor * self.term_of(loss)
        self.is_checked = True
        size = term.detach().abs()
        self._log({"": term.detach(), "_share": size / (size + loss.detach().abs())})
        if factor == 0:
            return output
        # The user's own dictionary isn't changed.
        return {**output, "loss": loss + term} if isinstance(output, Mapping) else loss + term

    def _log(self, values: dict[str, Tensor]) -> None:
        if logs_now(self.run.trainer):
            for kind, value in values.items():
                self.run.log(f"penalty/{self.name}{kind}", value)
            self.strength.log(self.run.module, self.name)
