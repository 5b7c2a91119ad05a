"""What every callback that takes hold of somebody else's module has in common."""

from abc import ABC, abstractmethod
from enum import IntEnum
from typing import Any, ClassVar, Protocol
from weakref import WeakSet

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import LBFGS, Optimizer
from typing_extensions import override

from lightning_reg.settings import SettingError

__all__ = [
    "GradientTechnique",
    "Position",
    "StepTechnique",
    "Technique",
    "callbacks_of",
    "instance_number",
    "instance_suffix",
    "logs_now",
]


class _Handle(Protocol):
    """What removes a hook; torch's handles are such."""

    def remove(self) -> None:
        """Removes the hook."""


class Position(IntEnum):
    """The order of techniques around the optimizer's step."""

    SHARPNESS = 0  # replaces the gradient of the loss, to which penalties are then added
    PENALTY = 1
    CENTRALIZATION = 2
    NOISE = 3
    CONSTRAINT = 4  # after the step, where penalties have shrunk weights and before updates are measured
    MEASUREMENT = 5  # before clipping; what is after it is measured later
    CLIPPING = 6
    LOOKAHEAD = 7  # after the step and its constraints, before averages
    AVERAGING = 8  # sees the weights as the batch leaves them


class Technique(Callback, ABC):
    """Takes hold of a module when a fit starts, and lets go of it however the fit ends.

    Subclasses say what in :meth:`attach` and :meth:`release`. Hooks whose handles are put into ``self.handles`` are
    removed by themselves.
    """

    def __init__(self) -> None:
        self.handles: list[_Handle] = []

    @abstractmethod
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes hold.

        Args:
            trainer: At fit start, with its optimizers.
            pl_module: The module, where its parameters are to stay.
        """

    def release(self) -> None:
        """Lets go: forgets parameters and modules, else the callback would keep them alive."""

    def begin_batch(self, trainer: Trainer, batch_idx: int) -> None:
        """Makes ready what is drawn for a batch; called once more where a batch is run again.

        Args:
            trainer: That runs.
            batch_idx: Of the training batch.
        """

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.begin_batch(trainer, batch_idx)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.attach(trainer, pl_module)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._let_go()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._let_go()  # teardown isn't called when an exception ends the fit

    def _let_go(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []
        self.release()


class StepTechnique(Technique):
    """Acts before or after an optimizer's step, in the order of :class:`Position` whatever the user's order."""

    position: ClassVar[Position]

    def __init__(self) -> None:
        super().__init__()
        self._hooked: WeakSet[Optimizer] = WeakSet()

    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Runs between backward and the step, on gradients that are unscaled unless the optimizer does that itself.

        Args:
            trainer: That runs.
            pl_module: The module.
            optimizer: That is about to step.
        """

    def after_step(self, optimizer: Optimizer) -> None:
        """Runs when an optimizer has stepped; not where a gradient scaler skips the step.

        Args:
            optimizer: That has stepped.
        """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            _arrange(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not earlier: a sharded optimizer's state is loaded after on_fit_start, by a step that isn't one.
        for optimizer in trainer.optimizers:
            self._hook(optimizer)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._hook(optimizer)  # somebody may have made new optimizers
        self.before_step(trainer, pl_module, optimizer)

    def _hook(self, optimizer: Optimizer) -> None:
        if optimizer in self._hooked:
            return
        try:
            self.handles.append(optimizer.register_step_post_hook(self._stepped))
        except AttributeError as error:
            raise SettingError(
                f"optimizer must call torch.optim.Optimizer.__init__ with {type(self).__name__}, which hooks onto its "
                f"steps, but {type(optimizer).__name__} doesn't"
            ) from error
        self._hooked.add(optimizer)

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.after_step(optimizer)

    @override
    def _let_go(self) -> None:
        super()._let_go()
        self._hooked = WeakSet()


class GradientTechnique(StepTechnique):
    """Changes or measures gradients before the step.

    It refuses optimizers that evaluate the loss several times a step, and those that step behind Lightning's back.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_told = False

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._is_told = True
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    @override
    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._is_told:
            raise SettingError(
                f"use_pl_optimizer must be True in self.optimizers() with {type(self).__name__}, else Lightning "
                "doesn't say when the optimizer steps"
            )
        self._is_told = False
        super()._stepped(optimizer, args, kwargs)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
            raise SettingError(
                f"optimizer must not be LBFGS with {type(self).__name__}: its line search compares losses that a "
                "change of gradients isn't part of; use a first-order optimizer, or write the penalty into the loss"
            )
        super().on_fit_start(trainer, pl_module)


def logs_now(trainer: Trainer) -> bool:
    """Whether the trainer logs the step that it is in; Lightning has no public name for it.

    Args:
        trainer: That runs.
    """
    logs: bool = trainer._logger_connector.should_update_logs
    return logs


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Returns the trainer's callbacks.

    Args:
        trainer: That has them.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set outside the class
    return callbacks


def instance_number(trainer: Trainer, callback: Callback) -> int:
    """Returns which of its kind a callback is, counted from 0.

    Args:
        trainer: With all callbacks.
        callback: One of them.
    """
    return [each for each in callbacks_of(trainer) if type(each) is type(callback)].index(callback)


def instance_suffix(trainer: Trainer, callback: Callback) -> str:
    """Returns what tells a callback's tags from those of others of its kind: nothing where it is alone.

    Args:
        trainer: With all callbacks.
        callback: One of them.
    """
    alone = sum(type(each) is type(callback) for each in callbacks_of(trainer)) == 1
    return "" if alone else f"_{instance_number(trainer, callback) + 1}"


def _arrange(trainer: Trainer) -> None:
    """Sorts the techniques around the step among the places that they take up; everybody else stays where they are."""
    callbacks = callbacks_of(trainer)
    ours = sorted((each for each in callbacks if isinstance(each, StepTechnique)), key=lambda each: each.position)
    arranged = iter(ours)
    # A new list: Lightning is going through the old one at this moment.
    trainer.callbacks = [  # type: ignore[attr-defined]
        next(arranged) if isinstance(each, StepTechnique) else each for each in callbacks
    ]
