"""A technique is its settings; a run of it is a session."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from typing_extensions import override

from lightning_reg.core.facts import Chart, Place, Position, Range
from lightning_reg.core.lightning import callbacks_of, check_version, instance_suffix
from lightning_reg.core.session import Session, plain
from lightning_reg.core.step import Run
from lightning_reg.settings import SettingError

__all__ = ["Technique"]


@dataclass(frozen=True)
class _Waiting:
    """State that a checkpoint handed over, for the next run."""

    state: Mapping[str, Any]


@dataclass(frozen=True)
class _Ended:
    """What the last run left: for checkpoints that are saved after it, and for users."""

    kept: Mapping[str, Any]
    result: Any


class Technique(Callback):
    """A callback whose attributes are its settings. What lives during a fit is a :class:`Session`.

    A subclass makes its session in :meth:`new_session`. Beside the settings there is one slot: state that waits for the
    next run, the live session, or the record of the last run.

    What a class declares of itself below is read by the audit, the charts, the documentation and the search; nothing
    knows a technique by the text of its name.

    Attributes:
        place: Where in a training step it acts.
        position: When it acts around an optimizer step.
        charts: What it logs, for TensorBoard's custom scalars.
        usual_ranges: Where its settings are usually found.
        changes_gradients: Whether it changes or measures gradients before the step. Such a technique refuses optimizers
            that evaluate the loss several times a step, and those that step behind Lightning's back.
        only_watches: Whether training is the same without it.
        averages_weights: Whether it puts averaged weights into the module.
        clips_gradients: Whether it shortens gradients.
        fixes_lengths: Whether it scales weights to a length after each step.
        softens_predictions: Whether it asks for less confident predictions.
        restarts_rate: Whether it raises the learning rate again and again.
        freezes_batch_norm: Whether it takes running statistics for those of the batch.
    """

    place: ClassVar[Place]
    position: ClassVar[Position] = Position.OUTSIDE
    charts: ClassVar[tuple[Chart, ...]] = ()
    usual_ranges: ClassVar[tuple[Range, ...]] = ()
    changes_gradients: ClassVar[bool] = False
    only_watches: ClassVar[bool] = False
    averages_weights: ClassVar[bool] = False
    clips_gradients: ClassVar[bool] = False
    fixes_lengths: ClassVar[bool] = False
    softens_predictions: ClassVar[bool] = False
    restarts_rate: ClassVar[bool] = False
    freezes_batch_norm: ClassVar[bool] = False

    @property
    def l2_strength(self) -> float:
        """Strength with which it shrinks weights in proportion to their size; 0 where it doesn't."""
        return 0.0

    def __init__(self) -> None:
        self._slot: _Waiting | Session[Any] | _Ended = _Waiting({})

    def new_session(self, run: Run) -> Session[Any]:
        """Returns the session of a fit that starts.

        Args:
            run: The fit, with its trainer, its module where its parameters are to stay, and its optimizers.
        """
        return Session(self, run)

    @property
    def acts_on_steps(self) -> bool:
        """Whether it takes part in optimizer steps."""
        return self.position != Position.OUTSIDE

    @property
    def session(self) -> Session[Any] | None:
        """The live session; None outside of a fit."""
        return self._slot if isinstance(self._slot, Session) else None

    @property
    def last_result(self) -> Any:
        """What the latest run handed over, or would at this moment; None where there was none."""
        if isinstance(self._slot, Session):
            return self._slot.result()
        return self._slot.result if isinstance(self._slot, _Ended) else None

    def session_ended(self, session: Session[Any]) -> None:
        """Keeps the record of a session that has ended.

        Args:
            session: The one that :meth:`new_session` made.
        """
        self._slot = _Ended(session.kept(), session.result())

    # The slot: Lightning asks for state and hands it over at all times. A class whose session keeps something says
    # ``state_dict = Technique.saved_state`` and ``load_state_dict = Technique.load_saved_state``; in this class they
    # would make Lightning refuse two equal callbacks that keep nothing.

    @property
    def kept(self) -> dict[str, Any]:
        """What a checkpoint keeps, with the very tensors that are in use; empty where nothing has run yet."""
        slot = self._slot
        if isinstance(slot, Session):
            return slot.kept()
        return dict(slot.state if isinstance(slot, _Waiting) else slot.kept)

    def saved_state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, whenever it is asked for."""
        state: dict[str, Any] = self.kept
        return state if isinstance(self._slot, _Waiting) else plain(state)

    def load_saved_state(self, state_dict: dict[str, Any]) -> None:
        """Takes what a checkpoint kept, now or for the next run.

        Args:
            state_dict: What :meth:`saved_state` returned.
        """
        if isinstance(self._slot, Session):  # a strategy that restores late, a finder in the middle of a fit
            self._slot.load(state_dict)
        else:
            self._slot = _Waiting(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry settings and state, as a checkpoint would; never hooks."""
        # Lightning gives every callback the module's own log and log_dict, and with them the module.
        settings = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
        return {**settings, "_slot": _Waiting(self.saved_state())}

    # The run begins and ends

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        first = next((callback for callback in callbacks_of(trainer) if isinstance(callback, Technique)), self)
        stale = Run.of(trainer)
        if stale is not None and first is self:  # of a fit that ended without a word
            stale.end()
        if stage == "fit":
            check_version(trainer)
            self._slot = _Waiting({})  # before a checkpoint's state is loaded; each fit begins anew

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.changes_gradients and any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
            raise SettingError(
                f"optimizer must not be LBFGS with {type(self).__name__}: its line search compares losses that a "
                "change of gradients isn't part of; use a first-order optimizer, or write the penalty into the loss"
            )
        self.begin(Run.begun(trainer, pl_module))

    def begin(self, run: Run) -> None:
        """Makes the session and joins it to the run.

        Args:
            run: Of a fit, or of an evaluation in which the technique takes part.
        """
        waiting = self._slot.state if isinstance(self._slot, _Waiting) else {}
        session = self.new_session(run)
        if waiting:
            session.load(waiting)
        self._slot = session
        run.join(self, session)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        run = Run.of(trainer)
        if run is not None:
            run.end()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        run = Run.of(trainer)  # teardown isn't called when an exception ends the fit
        if run is not None:
            run.end(exception)

    # What the leader passes on

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if run := Run.led_by(self, trainer):
            run.train_starts()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if run := Run.led_by(self, trainer):
            run.batch_starts(batch_idx)

    @override
    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if run := Run.led_by(self, trainer):
            run.zero_grad(optimizer)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if run := Run.led_by(self, trainer):
            run.before_backward(loss)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if run := Run.led_by(self, trainer):
            run.after_backward()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if run := Run.led_by(self, trainer):
            run.before_step(optimizer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if run := Run.led_by(self, trainer):
            run.batch_ends(outputs, batch_idx)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if run := Run.led_by(self, trainer):
            run.epoch_ends()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if run := Run.led_by(self, trainer):
            run.validation_starts()

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if run := Run.led_by(self, trainer):
            run.validation_batch_starts(batch_idx, dataloader_idx)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if run := Run.led_by(self, trainer):
            run.validation_batch_ends()

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if run := Run.led_by(self, trainer):
            run.validation_epoch_ends()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if run := Run.led_by(self, trainer):
            run.validation_ends()

    @override
    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if run := Run.led_by(self, trainer):
            run.test_batch_starts(batch_idx, dataloader_idx)

    @override
    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if run := Run.led_by(self, trainer):
            run.predict_batch_starts(batch_idx, dataloader_idx)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if run := Run.led_by(self, trainer):
            run.train_ends()

    def suffix(self, trainer: Trainer) -> str:
        """Returns what tells its tags from those of others of its class: nothing where it is alone."""
        return instance_suffix(trainer, self)
