"""What happens around an optimizer step, written down once, in the order in which it happens."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg.core.gradients import gradient_norms
from lightning_reg.core.lightning import (
    any_gradient,
    gradient_scale,
    logs_now,
    optimizer_index,
    optimizer_name,
    unscaled_loss,
)
from lightning_reg.core.session import HOOKS, Session
from lightning_reg.core.wrapping import Layer, around
from lightning_reg.settings import SettingError

if TYPE_CHECKING:
    from lightning_reg.core.technique import Technique

__all__ = ["Clip", "Run", "Step", "trainable"]

S = TypeVar("S", bound=Session[Any])

_RUNS: WeakKeyDictionary[Trainer, Run] = WeakKeyDictionary()


class _Handle(Protocol):
    """What removes a hook; torch's handles are such."""

    def remove(self) -> None: ...


@dataclass(frozen=True)
class Clip:
    """What clipping did in one step; norms are without a gradient scaler's scale.

    Attributes:
        parameters: Those whose gradients were looked at.
        threshold: Norm, or size of an entry, beyond which gradients were shortened.
        clipped: Whether any was; None where it isn't known without looking at every entry.
        norm: Their norm before clipping, where it was computed.
        clipped_norm: Their norm after clipping, likewise.
        by_entry: Whether single entries are cut off rather than a norm.
        fraction: Share of this epoch's steps that were clipped, where it is counted.
    """

    parameters: list[nn.Parameter]
    threshold: float | Tensor
    clipped: Tensor | None = None
    norm: Tensor | None = None
    clipped_norm: Tensor | None = None
    by_entry: bool = False
    fraction: Tensor | None = None


class Step:
    """One step of one optimizer, from its last backward pass on.

    Attributes:
        optimizer: The one that steps.
        share: How much of a penalty belongs into this step. Written into the loss, a penalty comes with every
            micro-batch, divided like the loss by the number k of micro-batches in a window; so a step after n backward
            passes gets n/k of it: less than 1 in the last window of an epoch, after a resume in the middle of one, or
            where a training step returned no loss. Under manual optimization the user decides what a step is made of,
            and it gets the whole.
        logs: Whether the trainer logs this step.
        loss: The user's own loss in the latest backward pass, where the trainer logs; else None.
        clips: What our own clipping has done in this step.
    """

    def __init__(self, run: Run, optimizer: Optimizer, share: float, served: set[nn.Parameter]) -> None:
        self.run = run
        self.optimizer = optimizer
        self.share = share
        self.logs = logs_now(run.trainer)
        self.loss = run.loss
        self.clips: list[Clip] = []
        self._served = served
        self._norms: tuple[list[tuple[Tensor | None, int]], Tensor] | None = None

    @cached_property
    def index(self) -> int:
        """Place of the optimizer among the trainer's."""
        return optimizer_index(self.run.trainer, self.optimizer)

    @cached_property
    def name(self) -> str:
        """What tells the optimizer's tags from those of others; empty where it is alone."""
        return optimizer_name(self.run.trainer, self.optimizer)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The optimizer's parameters that are trained at this moment, in its order, without empty ones."""
        return trainable(self.optimizer)

    @cached_property
    def fresh(self) -> set[nn.Parameter]:
        """Those whose gradients no earlier step after the same backward pass has changed.

        Two optimizers that share a parameter may both step after one backward pass: its gradient is changed once.
        """
        return {parameter for parameter in self.parameters if parameter not in self._served}

    @cached_property
    def scale(self) -> Tensor | None:
        """The gradient scaler's scale where it is still in the gradients: what is added has to carry it, too."""
        return gradient_scale(self.run.trainer, self.optimizer)

    def norms(self, parameters: list[nn.Parameter]) -> Tensor:
        """Returns the Euclidean norms of the gradients as they are now, computed once as long as nobody changes them.

        Args:
            parameters: At least one, each with a gradient.

        Returns:
            (len(parameters),), with the scale that is still in the gradients.
        """
        if self._norms is None or not _same(self._norms[0], _versions(parameters)):
            norms = gradient_norms(parameters)
            self._norms = _versions(parameters), norms
        return self._norms[1]

    def unscaled(self, value: Tensor) -> Tensor:
        """Returns what was measured on gradients without the scale that is still in them.

        Args:
            value: A norm, or several.
        """
        return value if self.scale is None else value / self.scale

    def scaled(self, factor: float | Tensor) -> float | Tensor:
        """Returns a factor times the scale that is still in the gradients.

        Args:
            factor: What something is multiplied by before it is added to gradients.
        """
        return factor if self.scale is None else factor * self.scale

    @property
    def skipped(self) -> Tensor | None:
        """After a fused optimizer's step under a scaler: 1 where it skipped by itself, else 0; None for others."""
        found: Tensor | None = getattr(self.optimizer, "found_inf", None)
        return None if found is None else found.squeeze()

    def log(self, name: str, value: Tensor | float) -> None:
        """Logs a value as the module would.

        Args:
            value: A scalar; tensors aren't moved to the host.
        """
        self.run.log(name, value)


class Run:
    """One fit of one trainer, with the sessions of its techniques.

    Lightning calls the hooks of every callback. The first technique in the trainer's list, the leader, passes its calls
    on; so all techniques act at one place of the list, in the order of their positions, and the list stays the user's.

    Attributes:
        module: The module that it fits.
        loss: The user's own loss in the latest backward pass, where the trainer logs.
        is_again: Whether a batch is being run again, which nothing counts.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.is_again = False
        self.trainer = trainer
        self.module = module
        self.loss: Tensor | None = None
        self.leader: Technique | None = None
        self._members: list[tuple[Technique, Session[Any]]] = []
        self._listeners: dict[str, list[Any]] = {hook: [] for hook in HOOKS}
        self._undo = ExitStack()
        self._hooked: set[Optimizer] = set()
        self._nesting: dict[Optimizer, int] = {}
        self._open: dict[Optimizer, Step] = {}
        self._passes = 0  # backward passes since the last step
        self._saw_backward = False
        self._served: set[nn.Parameter] = set()

    # Who takes part

    @staticmethod
    def of(trainer: Trainer) -> Run | None:
        """Returns the run that a trainer is in, if one of our techniques takes part in it."""
        return _RUNS.get(trainer)

    @staticmethod
    def begun(trainer: Trainer, module: LightningModule) -> Run:
        """Returns the run that a trainer is in; the first technique that asks begins it.

        Args:
            module: The module that it fits.
        """
        run = _RUNS.get(trainer)
        if run is None:
            run = _RUNS[trainer] = Run(trainer, module)
        return run

    @staticmethod
    def led_by(technique: Technique, trainer: Trainer) -> Run | None:
        """Returns the run that a technique leads, None where another one does.

        Args:
            technique: The one that Lightning calls.
            trainer: The trainer that calls it.
        """
        run = _RUNS.get(trainer)
        return run if run is not None and run.leader is technique else None

    def join(self, technique: Technique, session: Session[Any]) -> None:
        """Lets a technique take part."""
        self.leader = self.leader or technique
        self._members.append((technique, session))
        self._members.sort(key=lambda member: member[0].position)
        for hook in HOOKS:
            self._listeners[hook] = [
                getattr(member, hook)
                for _, member in self._members
                if getattr(type(member), hook) is not getattr(Session, hook)
            ]

    def sessions_of(self, kind: type[S]) -> list[S]:
        """Returns the sessions of a kind that have joined so far.

        Args:
            kind: A class of sessions.
        """
        return [session for _, session in self._members if isinstance(session, kind)]

    def techniques(self) -> list[Technique]:
        """Returns the techniques that take part, in the order of their positions."""
        return [technique for technique, _ in self._members]

    def around(self, owner: object, name: str, layer: Layer, *, innermost: bool = False) -> None:
        """Puts a layer around a method until the run ends.

        Args:
            owner: The object whose method it is.
            name: Name of the method.
            layer: Called with what is inside it and the arguments.
            innermost: Whether it goes next to the method instead, where it sees the arguments that the method gets.
        """
        self.until_end(around(owner, name, layer, innermost=innermost))

    def until_end(self, handle: _Handle) -> None:
        """Removes a hook when the run ends.

        Args:
            handle: What torch returns for a hook.
        """
        self._undo.callback(handle.remove)

    def log(self, name: str, value: Tensor | float) -> None:
        """Logs a value as the module would; it is one value a step, of however many samples.

        Args:
            value: A scalar; tensors aren't moved to the host.
        """
        # Lightning can't find a batch size where training steps fetch their own batches.
        self.module.log(name, value, batch_size=1)

    # What happens, in this order

    def train_starts(self) -> None:
        """Hooks onto the optimizers."""
        # Not earlier: a sharded optimizer's state is loaded after on_fit_start, by a step that isn't one.
        for optimizer in self.trainer.optimizers:
            self._hook(optimizer)
        self._tell("train_starts")

    def batch_starts(self, batch_idx: int) -> None:
        """Begins a batch; of what follows, all but this comes once a micro-batch or an optimizer."""
        self._nesting.clear()  # whatever has failed in an earlier step
        self._tell("batch_starts", batch_idx)

    def zero_grad(self, optimizer: Optimizer) -> None:
        """Gradients are about to be cleared."""
        self._begin_window()
        self._tell("zero_grad", optimizer)

    def before_backward(self, loss: Tensor) -> None:
        """Notes the loss, before its gradients are added to those of the window."""
        if not any_gradient(self.trainer):  # somebody else has cleared them
            self._begin_window()
        self.loss = unscaled_loss(self.trainer, loss) if logs_now(self.trainer) else None
        self._tell("before_backward", loss)

    def after_backward(self) -> None:
        """Counts a pass into the window."""
        self._passes += 1
        self._saw_backward = True
        self._tell("after_backward")

    def before_step(self, optimizer: Optimizer) -> None:
        """Everything that changes or measures gradients, in the order of positions."""
        self._hook(optimizer)  # somebody may have made a new one
        step = self._open[optimizer] = Step(self, optimizer, self._close_window(), self._served)
        # First sharpness, which replaces gradients; then penalties, centralization, noise, measurement, clipping.
        self._tell("step_begins", step)
        self._tell("before_step", step)
        if step.share:
            self._served = self._served | set(step.parameters)

    def _begin_window(self) -> None:
        self._passes = 0  # none of those so far reaches a step
        self._served = set()

    def _close_window(self) -> float:
        passes, self._passes = self._passes, 0
        # Who calls loss.backward() instead of self.manual_backward() doesn't tell us; then every step is a new one.
        if passes or not self._saw_backward:
            self._served = set()
        return passes / self.trainer.accumulate_grad_batches if self.module.automatic_optimization else 1.0

    def after_step(self, optimizer: Optimizer) -> None:
        """Proximal operators, constraints, measurement, Lookahead, averages; where a scaler skips, it isn't called."""
        step = self._open.pop(optimizer, None)
        if step is None:
            self._refuse_unannounced()
            step = Step(self, optimizer, 0.0, self._served)
        self._tell("after_step", step)

    def batch_ends(self, outputs: Any, batch_idx: int) -> None:
        """A step that is still open now was skipped by a gradient scaler."""
        self._tell("batch_ends", outputs, batch_idx)
        self._open.clear()

    def epoch_ends(self) -> None:
        """After the last batch of an epoch, and its validation."""
        self._tell("epoch_ends")

    def validation_starts(self) -> None:
        """Averages are put into the module."""
        self._tell("validation_starts")

    def validation_batch_starts(self, batch_idx: int, dataloader_idx: int) -> None:
        """A validation batch begins."""
        self._tell("validation_batch_starts", batch_idx, dataloader_idx)

    def validation_batch_ends(self) -> None:
        """A validation batch has ended."""
        self._tell("validation_batch_ends")

    def validation_epoch_ends(self) -> None:
        """What was measured in a validation is logged."""
        self._tell("validation_epoch_ends")

    def validation_ends(self) -> None:
        """Trained weights are put back."""
        self._tell("validation_ends")

    def test_batch_starts(self, batch_idx: int, dataloader_idx: int) -> None:
        """A test batch begins."""
        self._tell("test_batch_starts", batch_idx, dataloader_idx)

    def predict_batch_starts(self, batch_idx: int, dataloader_idx: int) -> None:
        """A prediction batch begins."""
        self._tell("predict_batch_starts", batch_idx, dataloader_idx)

    def train_ends(self) -> None:
        """Averages are put in for good; then the best weights are restored."""
        self._tell("train_ends")

    # A batch that is run again, for its gradients: it counts in no window

    def begins_again(self, batch_idx: int) -> None:
        """What is drawn for a batch is drawn once more, alike."""
        self._tell("batch_starts", batch_idx)

    def before_backward_again(self, loss: Tensor) -> None:
        """The backward pass of a batch that is run again begins."""
        self._tell("before_backward", loss)

    def after_backward_again(self) -> None:
        """The backward pass of a batch that is run again has ended."""
        self._tell("after_backward")

    # The end

    def end(self, exception: BaseException | None = None) -> None:
        """Drops all sessions and removes all hooks; safe to call again.

        Args:
            exception: What ended the run; None where it ended as planned.
        """
        _RUNS.pop(self.trainer, None)
        members, self._members = self._members, []
        with self._undo:
            for technique, session in members:
                session.ends(exception)
                technique.session_ended(session)
        self._listeners = {hook: [] for hook in HOOKS}

    # How the run knows

    def _tell(self, hook: str, *arguments: Any) -> None:
        for listener in self._listeners[hook]:
            listener(*arguments)

    def _hook(self, optimizer: Optimizer) -> None:
        stepping = [technique for technique in self.techniques() if technique.acts_on_steps]
        if optimizer in self._hooked or not stepping:
            return
        try:
            self.until_end(optimizer.register_step_pre_hook(self._step_entered))
            self.until_end(optimizer.register_step_post_hook(self._step_left))
        except AttributeError as error:
            raise SettingError(
                f"optimizer must call torch.optim.Optimizer.__init__ with {type(stepping[0]).__name__}, which hooks "
                f"onto its steps, but {type(optimizer).__name__} doesn't"
            ) from error
        self._hooked.add(optimizer)

    def _step_entered(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._nesting[optimizer] = self._nesting.get(optimizer, 0) + 1

    def _step_left(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # A step that calls super().step() is left twice.
        self._nesting[optimizer] = self._nesting.get(optimizer, 1) - 1
        if self._nesting[optimizer] == 0:
            self.after_step(optimizer)

    def _refuse_unannounced(self) -> None:
        for technique in self.techniques():
            if technique.changes_gradients:
                raise SettingError(
                    f"use_pl_optimizer must be True in self.optimizers() with {type(technique).__name__}, else "
                    "Lightning doesn't say when the optimizer steps"
                )


def _versions(parameters: list[nn.Parameter]) -> list[tuple[Tensor | None, int]]:
    gradients = (parameter.grad for parameter in parameters)
    return [(gradient, 0 if gradient is None else gradient._version) for gradient in gradients]


def _same(before: list[tuple[Tensor | None, int]], now: list[tuple[Tensor | None, int]]) -> bool:
    return len(before) == len(now) and all(
        one is other and version == later for (one, version), (other, later) in zip(before, now, strict=True)
    )


def trainable(optimizer: Optimizer) -> list[nn.Parameter]:
    """Returns an optimizer's parameters that are trained at this moment, in its order, without empty ones."""
    stepped: Iterable[nn.Parameter] = (weight for group in optimizer.param_groups for weight in group["params"])
    return [parameter for parameter in stepped if parameter.requires_grad and parameter.numel()]
