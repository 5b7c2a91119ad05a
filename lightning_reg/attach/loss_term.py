"""Terms that need activations or predictions, added to the loss that somebody else's training step returns."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_reg.attach.schedules import ScheduledStrength, StrengthSchedule, check_schedule
from lightning_reg.attach.technique import Technique, instance_suffix, logs_now
from lightning_reg.core.facts import Chart, Place
from lightning_reg.core.wrapping import around
from lightning_reg.settings import SettingError

__all__ = ["LossTerm"]


class LossTerm(Technique):
    """Watches the training step and adds a term to the loss that goes into backward; the one that is logged stays.

    Args:
        schedule: What the strength is multiplied by as training goes on.
    """

    place = Place.LOSS
    charts = (
        Chart("Penalties", "value", r"penalty/(?!.*(_share|_zeros)$)"),
        Chart("Penalties", "share of the loss", r"penalty/.*_share$"),
    )
    tag: ClassVar[str]

    def __init__(self, *, schedule: StrengthSchedule | None) -> None:
        super().__init__()
        check_schedule(schedule)
        self.schedule = schedule
        self._strength = ScheduledStrength()
        self._suffix = ""
        self._is_checked = False
        self._module: LightningModule | None = None

    @abstractmethod
    def watching(self) -> AbstractContextManager[Any]:
        """Returns a context in which a training step runs and the term is made ready."""

    @abstractmethod
    def term(self) -> Tensor:
        """Returns the term at full strength, of what was seen in the training step that has just run."""

    @property
    @abstractmethod
    def is_idle(self) -> bool:
        """Whether the strength is zero."""

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.automatic_optimization:
            raise SettingError(
                f"automatic_optimization must be True with {type(self).__name__}: under manual optimization its term "
                "can't reach the loss that you hand to manual_backward; add it there"
            )
        self._strength = ScheduledStrength(self.schedule, trainer)
        self._suffix = instance_suffix(trainer, self)
        self._is_checked = False
        self._module = pl_module
        self.handles.append(around(pl_module, "training_step", self._step))  # inside autocast, where there is one

    @override
    def release(self) -> None:
        self._module = None
        self._strength = ScheduledStrength()

    def _step(self, training_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._module is None:  # let go of
            return training_step(*args, **kwargs)
        factor = self._strength.now(self._module.trainer)
        # The first step is watched even where a schedule begins at 0: a term that can't be had is an error now.
        if self.is_idle or (factor == 0 and self._is_checked):
            self._log(self._module, {})
            return training_step(*args, **kwargs)
        with self.watching():
            output = training_step(*args, **kwargs)
            loss = output.get("loss") if isinstance(output, Mapping) else output
            if loss is None:  # this batch is skipped
                return output
            with torch._C.DisableTorchFunction():  # who watches the user's calls isn't to take these for theirs
                term: Tensor = factor * self.term()
        self._is_checked = True
        size = term.detach().abs()
        self._log(self._module, {"": term.detach(), "_share": size / (size + loss.detach().abs())})
        if factor == 0:
            return output
        # The user's own dictionary stays as it is.
        return {**output, "loss": loss + term} if isinstance(output, Mapping) else loss + term

    def _log(self, pl_module: LightningModule, values: dict[str, Tensor]) -> None:
        if logs_now(pl_module.trainer):
            name = f"{self.tag}{self._suffix}"
            for kind, value in values.items():
                pl_module.log(f"penalty/{name}{kind}", value)
            self._strength.log(pl_module, name)
