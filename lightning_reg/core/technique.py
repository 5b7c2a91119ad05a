"""The base class of all techniques: a callback that holds settings, while a session holds the state of a run."""

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
from lightning_reg.settings import SettingError, check_flags

__all__ = ["Technique"]


@dataclass(frozen=True)
class _Waiting:
    """State from a checkpoint, for the next run."""

    state: Mapping[str, Any]


@dataclass(frozen=True)
class _Ended:
    """Record of the last run, for checkpoints that are saved after it and for users."""

    kept: Mapping[str, Any]
    result: Any


class Technique(Callback):
    """A callback whose attributes are its settings. The state of a fit is in a :class:`Session`.

    A subclass creates its session in :meth:`new_session`. Besides the settings there is one slot: the state for the
    next run, the live session, or the record of the last run.

    The audit, the charts, the documentation and the search read the class attributes below; none of them recognizes a
    technique by its name.

    Attributes:
        place: Stage of the training step at which it acts.
        position: Order in which it acts around an optimizer step.
        charts: Charts of its logged values, for TensorBoard's custom scalars.
        usual_ranges: Usual ranges of its settings.
        changes_gradients: Whether it changes or measures gradients before the step. Such a technique refuses optimizers
            that evaluate the loss several times per step, and those that step unseen by Lightning.
        adds_to_loss: Whether it returns another loss than the module's training step does.
        only_watches: Whether training is the same without it.
        averages_weights: Whether it puts averaged weights into the module.
        clips_gradients: Whether it clips gradients.
        fixes_lengths: Whether it scales weights to a fixed norm after each step.
        softens_predictions: Whether it makes predictions less confident.
        restarts_rate: Whether it raises the learning rate repeatedly.
        freezes_batch_norm: Whether BatchNorm normalizes by running statistics instead of the batch's.
    """

    place: ClassVar[Place]
    position: ClassVar[Position] = Position.OUTSIDE
    charts: ClassVar[tuple[Chart, ...]] = ()
    usual_ranges: ClassVar[tuple[Range, ...]] = ()
    changes_gradients: ClassVar[bool] = False
    adds_to_loss: ClassVar[bool] = False
    only_watches: ClassVar[bool] = False
    averages_weights: ClassVar[bool] = False
    clips_gradients: ClassVar[bool] = False
    fixes_lengths: ClassVar[bool] = False
    softens_predictions: ClassVar[bool] = False
    restarts_rate: ClassVar[bool] = False
    freezes_batch_norm: ClassVar[bool] = False

    @property
    def l2_strength(self) -> float:
        """Strength of its L2 penalty; 0 if it has none."""
        return 0.0

    def __init__(self) -> None:
        self._slot: _Waiting | Session[Any] | _Ended = _Waiting({})

    def new_session(self, run: Run) -> Session[Any]:
        """Returns a session for a fit that starts.

        Args:
            run: The fit; its module is on its device already, and its optimizers exist.
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
        """Result of the latest run, or of the live one so far; None if there is none."""
        if isinstance(self._slot, Session):
            return self._slot.result()
        return self._slot.result if isinstance(self._slot, _Ended) else None

    def session_ended(self, session: Session[Any]) -> None:
        """Keeps the record of a session that has ended."""
        self._slot = _Ended(session.kept(), session.result())

    # The slot: Lightning saves and loads state at any time. A class whose session keeps state sets
    # ``state_dict = Technique.saved_state`` and ``load_state_dict = Technique.load_saved_state``; in this class they
    # would make Lightning refuse two equal callbacks without state.

    @property
    def kept(self) -> dict[str, Any]:
        """State that a checkpoint keeps, with the live tensors rather than copies; empty if there is none yet."""
        slot = self._slot
        if isinstance(slot, Session):
            return slot.kept()
        return dict(slot.state if isinstance(slot, _Waiting) else slot.kept)

    def saved_state(self) -> dict[str, Any]:
        """Returns the state that a checkpoint keeps; may be called at any time."""
        state: dict[str, Any] = self.kept
        return state if isinstance(self._slot, _Waiting) else plain(state)

    def load_saved_state(self, state_dict: dict[str, Any]) -> None:
        """Loads a checkpoint's state into the live session, or keeps it for the next run.

        Args:
            state_dict: Return value of :meth:`saved_state`.

        Raises:
            SettingError: If the live session can't load it.
        """
        if isinstance(self._slot, Session):  # a strategy that restores late, a finder in the middle of a fit
            self._load(self._slot, state_dict)
        else:
            self._slot = _Waiting(state_dict)

    def _load(self, session: Session[Any], state: Mapping[str, Any]) -> None:
        try:
            session.load(state)
        except SettingError:
            raise
        except Exception as error:  # what lies deeper than a field, each technique reads in its own way
            raise SettingError(
                f"ckpt_path must hold a state of {type(self).__name__} that it has written, but reading it fails: "
                f"{type(error).__name__}: {error}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Returns settings and state for copies and pickles, as a checkpoint would; never hooks."""
        # Lightning sets the module's own log and log_dict on every callback, which refer to the module.
        settings = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
        return {**settings, "_slot": _Waiting(self.saved_state())}

    # The run begins and ends

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        first = next((callback for callback in callbacks_of(trainer) if isinstance(callback, Technique)), self)
        stale = Run.of(trainer)
        if stale is not None and first is self:  # of a fit that ended without teardown
            stale.end()
        if stage == "fit":
            check_version(trainer)
            check_flags(self)
            self._slot = _Waiting({})  # before a checkpoint's state is loaded; each fit begins anew

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.changes_gradients and any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
            why = (
                "its steps evaluate several gradients, none of which is that of the step; use a first-order optimizer"
                if self.only_watches
                else "its line search compares losses that a change of gradients isn't part of; use a first-order "
                "optimizer, or write the penalty into the loss"
            )
            raise SettingError(f"optimizer must not be LBFGS with {type(self).__name__}: {why}")
        self.begin(Run.begun(trainer, pl_module))

    def begin(self, run: Run) -> None:
        """Creates the session and adds it to the run.

        Args:
            run: Run of a fit, or of an evaluation in which the technique takes part.

        Raises:
            SettingError: If a checkpoint's state can't be loaded.
        """
        waiting = self._slot.state if isinstance(self._slot, _Waiting) else {}
        session = self.new_session(run)
        if waiting:
            self._load(session, waiting)
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

    # Hooks that the leader forwards

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
            run.zero_grad()

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
        """Returns the suffix of its tags; empty if it is the only callback of its class."""
        return instance_suffix(trainer, self)
