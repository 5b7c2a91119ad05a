"""What every callback that takes hold of somebody else's module has in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.core import technique as core
from lightning_reg.core.facts import Chart, Place, Position, Range
from lightning_reg.core.lightning import callbacks_of, instance_number, instance_suffix, logs_now
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run, Step

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


class Technique(Callback, ABC):
    """Takes hold of a module when a fit starts, and lets go of it however the fit ends.

    Subclasses say what in :meth:`attach` and :meth:`release`. Hooks whose handles are put into ``self.handles`` are
    removed by themselves.
    """

    # What core.technique.Technique declares, for those that aren't converted yet.
    place: ClassVar[Place]
    charts: ClassVar[tuple[Chart, ...]] = ()
    usual_ranges: ClassVar[tuple[Range, ...]] = ()
    only_watches: ClassVar[bool] = False
    averages_weights: ClassVar[bool] = False
    clips_gradients: ClassVar[bool] = False
    fixes_lengths: ClassVar[bool] = False
    softens_predictions: ClassVar[bool] = False
    freezes_batch_norm: ClassVar[bool] = False
    l2_strength: float = 0.0

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


class StepTechnique(Technique, core.Technique):
    """Acts before or after an optimizer's step, in the order of :class:`Position` whatever the user's order."""

    def __init__(self) -> None:
        Technique.__init__(self)
        core.Technique.__init__(self)

    def step_begins(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Runs before any technique acts on the gradients of a step.

        Args:
            trainer: That runs.
            pl_module: The module.
            optimizer: That is about to step.
        """

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
    def new_session(self, run: Run) -> Session[Any]:
        self.attach(run.trainer, run.module)
        return _Forwarding(self, run)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        core.Technique.on_fit_start(self, trainer, pl_module)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        core.Technique.on_train_batch_start(self, trainer, pl_module, batch, batch_idx)
        self.begin_batch(trainer, batch_idx)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        core.Technique.teardown(self, trainer, pl_module, stage)
        self._let_go()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        core.Technique.on_exception(self, trainer, pl_module, exception)
        self._let_go()


class _Forwarding(Session[StepTechnique]):
    """The run of a technique that still holds its own state."""

    @override
    def load(self, state: Mapping[str, Any]) -> None:
        pass

    @override
    def step_begins(self, step: Step) -> None:
        self.technique.step_begins(self.run.trainer, self.run.module, step.optimizer)

    @override
    def before_step(self, step: Step) -> None:
        self.technique.before_step(self.run.trainer, self.run.module, step.optimizer)

    @override
    def after_step(self, step: Step) -> None:
        self.technique.after_step(step.optimizer)


class GradientTechnique(StepTechnique):
    """Changes or measures gradients before the step.

    It refuses optimizers that evaluate the loss several times a step, and those that step behind Lightning's back.
    """

    changes_gradients = True
