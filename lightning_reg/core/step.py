"""Everything that happens around an optimizer step, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg.core.bypasses import Bypasses, unannounced
from lightning_reg.core.clipping import Clip
from lightning_reg.core.facts import TERMS, Position
from lightning_reg.core.gradients import gradient_norms
from lightning_reg.core.lightning import (
    any_gradient,
    callbacks_of,
    ends_a_step,
    gradient_scale,
    is_overridden,
    logs_now,
    optimizer_index,
    optimizer_name,
    unscaled_loss,
)
from lightning_reg.core.session import HOOKS, Session, listeners
from lightning_reg.core.wrapping import Layer, Removable, around
from lightning_reg.settings import SettingError

if TYPE_CHECKING:
    from lightning_reg.core.technique import Technique

__all__ = ["Run", "Step", "trainable", "unannounced"]

S = TypeVar("S", bound=Session[Any])

_STAGES: Mapping[str, tuple[RunningStage, ...]] = {
    "training_step": (RunningStage.TRAINING,),
    "validation_step": (RunningStage.SANITY_CHECKING, RunningStage.VALIDATING),
}
_RUNS: WeakKeyDictionary[Trainer, Run] = WeakKeyDictionary()


class Step:
    """One step of one optimizer, from its last backward pass on.

    Attributes:
        share: Fraction of a penalty that belongs to this step. Written into the loss, a penalty comes with every
            micro-batch, divided like the loss by the number k of micro-batches in a window; so a step after n backward
            passes gets n/k of it: less than 1 in the last window of an epoch, after a resume in the middle of one, or
            where a training step returned no loss. Under manual optimization the user decides what a step is made of,
            and it is 1.
        logs: Whether the trainer logs this step.
        loss: The user's own loss in the latest backward pass if the trainer logs, else None.
        clips: Results of our own clipping in this step.
    """

    def __init__(
        self, run: Run, optimizer: Optimizer, share: float, served: set[nn.Parameter], *, is_early: bool = False
    ) -> None:
        self.run = run
        self.optimizer = optimizer
        self.share = share
        self.logs = logs_now(run.trainer)
        self.loss = run.loss
        self.clips: list[Clip] = []
        self._served = served
        self._is_early = is_early  # before Lightning unscales gradients
        self._norms: tuple[list[tuple[Tensor | None, int]], Tensor] | None = None

    @cached_property
    def index(self) -> int:
        """Index of the optimizer among the trainer's."""
        return optimizer_index(self.run.trainer, self.optimizer)

    @cached_property
    def name(self) -> str:
        """Suffix of the optimizer's tags; empty if it is the trainer's only one."""
        return optimizer_name(self.run.trainer, self.optimizer)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The optimizer's non-empty parameters that currently require a gradient, in its order."""
        return trainable(self.optimizer)

    @cached_property
    def fresh(self) -> set[nn.Parameter]:
        """Parameters whose gradients no earlier step after the same backward pass has changed.

        Two optimizers that share a parameter may both step after one backward pass: its gradient is changed once.
        """
        return {parameter for parameter in self.parameters if parameter not in self._served}

    @cached_property
    def scale(self) -> Tensor | None:
        """The gradient scaler's scale if the gradients still carry it: whatever is added must carry it, too."""
        return gradient_scale(self.run.trainer, self.optimizer, is_early=self._is_early)

    def norms(self, parameters: list[nn.Parameter]) -> Tensor:
        """Returns the Euclidean norms of the present gradients, cached until a gradient changes.

        Args:
            parameters: At least one parameter, each with a gradient.

        Returns:
            Tensor (len(parameters),), with the scale that the gradients still carry.
        """
        if self._norms is None or not _same(self._norms[0], _versions(parameters)):
            norms = gradient_norms(parameters)
            self._norms = _versions(parameters), norms
        return self._norms[1]

    def unscaled(self, value: Tensor) -> Tensor:
        """Returns a value measured on the gradients, divided by the scale that they still carry.

        Args:
            value: A norm, or a tensor of several.
        """
        return value if self.scale is None else value / self.scale

    def scaled(self, factor: float | Tensor) -> float | Tensor:
        """Returns a factor times the scale that the gradients still carry.

        Args:
            factor: Factor on a term that is added to the gradients.
        """
        return factor if self.scale is None else factor * self.scale

    @property
    def skipped(self) -> Tensor | None:
        """After the step of a fused optimizer under a scaler: 1 if it skipped the step, else 0; None for others."""
        found: Tensor | None = getattr(self.optimizer, "found_inf", None)
        return None if found is None else found.squeeze()

    def log(self, name: str, value: Tensor | float) -> None:
        """Logs a value through the module.

        Args:
            value: A scalar; tensors aren't moved to the host.
        """
        self.run.log(name, value)


class Run:
    """One fit of one trainer, with the sessions of its techniques.

    Lightning calls the hooks of every callback. The first technique in the trainer's list, the leader, forwards its
    calls; so all techniques act at one place of the list, in the order of their positions, and the user's list isn't
    reordered.

    Attributes:
        loss: The user's own loss in the latest backward pass if the trainer logs, else None.
        is_again: Whether a batch is being run again, which isn't counted.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.is_again = False
        self.trainer = trainer
        self.module = module
        self.loss: Tensor | None = None
        self.leader: Technique | None = None
        self._members: list[tuple[Technique, Session[Any]]] = []
        # The listeners before the step come a second time, apart: those that add terms to gradients, and all others.
        self._listeners: dict[str, list[Any]] = {hook: [] for hook in (*HOOKS, "add_terms", "add_no_terms")}
        self._undo = ExitStack()
        self._hooked: set[Optimizer] = set()
        self._nesting: dict[Optimizer, int] = {}
        self._open: dict[Optimizer, Step] = {}
        self._early: dict[Optimizer, Step] = {}  # whose terms are in the gradients already
        self._clears_itself = is_overridden(module, "optimizer_zero_grad")  # and perhaps not for every batch
        self._is_beginning = False  # a window, before its first backward pass
        self._joins_in_backward = False  # before the module's hook, which may mask gradients
        self._passes = 0  # backward passes since the last step
        self._saw_backward = False
        self._served: set[nn.Parameter] = set()
        self._bypasses = Bypasses([], [])

    # Who takes part

    @staticmethod
    def of(trainer: Trainer) -> Run | None:
        """Returns the trainer's current run; None if none of our techniques takes part in it."""
        return _RUNS.get(trainer)

    @staticmethod
    def begun(trainer: Trainer, module: LightningModule) -> Run:
        """Returns the trainer's current run, which is created for the first technique that asks."""
        run = _RUNS.get(trainer)
        if run is None:
            run = _RUNS[trainer] = Run(trainer, module)
        return run

    @staticmethod
    def led_by(technique: Technique, trainer: Trainer) -> Run | None:
        """Returns the trainer's current run if the technique leads it, else None."""
        run = _RUNS.get(trainer)
        return run if run is not None and run.leader is technique else None

    def join(self, technique: Technique, session: Session[Any]) -> None:
        """Adds a technique and its session to the run."""
        self.leader = self.leader or technique
        self._members.append((technique, session))
        self._members.sort(key=lambda member: member[0].position)
        self._listeners = {hook: listeners(hook, [member for _, member in self._members]) for hook in HOOKS}
        for name, adds in (("add_terms", True), ("add_no_terms", False)):
            chosen = [member for other, member in self._members if (other.position in TERMS) == adds]
            self._listeners[name] = listeners("before_step", chosen)

    def sessions_of(self, kind: type[S]) -> list[S]:
        """Returns the sessions of a class that have joined so far."""
        return [session for _, session in self._members if isinstance(session, kind)]

    def techniques(self) -> list[Technique]:
        """Returns the techniques that take part, in the order of their positions."""
        return [technique for technique, _ in self._members]

    def around(self, owner: object, name: str, layer: Layer, *, innermost: bool = False) -> None:
        """Wraps a method in a layer until the run ends.

        Args:
            owner: Object that has the method.
            name: Name of the method.
            layer: Function called with the next inner callable and the arguments.
            innermost: Whether to put the layer directly around the method, where it sees the arguments of the method.
        """
        self.until_end(around(owner, name, layer, innermost=innermost))

    def around_step(self, name: str, layer: Layer, *, innermost: bool = False) -> None:
        """Wraps a step of the module in a layer until the run ends, in its own stage alone.

        A validation step that calls the training step gets the module's own.

        Args:
            name: ``training_step`` or ``validation_step``.
            layer: Function called with the next inner callable and the arguments.
            innermost: Whether to put the layer directly around the method, where it sees the arguments of the method.
        """
        stages = _STAGES[name]

        def in_its_stage(step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            call = partial(layer, step) if self.trainer.state.stage in stages else step
            return call(*args, **kwargs)

        self.around(self.module, name, in_its_stage, innermost=innermost)

    def until_end(self, handle: Removable) -> None:
        """Removes a hook when the run ends.

        Args:
            handle: Handle of the hook, such as torch's.
        """
        self._undo.callback(handle.remove)

    def log(self, name: str, value: Tensor | float) -> None:
        """Logs a value through the module, as one value per step whatever the batch size.

        Args:
            value: A scalar; tensors aren't moved to the host.
        """
        # Lightning can't find a batch size where training steps fetch their own batches.
        self.module.log(name, value, batch_size=1)

    # Hooks, in the order in which they run

    def train_starts(self) -> None:
        """Registers hooks on the optimizers."""
        # Not earlier: a sharded optimizer's state is loaded after on_fit_start, by a dummy step.
        for optimizer in self.trainer.optimizers:
            self._hook(optimizer)
        self._bypasses = Bypasses.of(self.techniques(), self.trainer)
        if self._listeners["add_terms"] and not self.module.automatic_optimization:
            self.around(self.trainer.precision_plugin, "clip_gradients", self._before_clipping)
        self._joins_in_backward = bool(self._listeners["add_terms"]) and self._hooks_gradients()
        self._tell("train_starts")

    def _hooks_gradients(self) -> bool:
        """Whether the module may mask gradients after the backward pass, those of terms in its loss with them."""
        # A module that clears gradients itself may step after any backward pass; sharpness replaces gradients.
        replaces = any(technique.position == Position.SHARPNESS for technique in self.techniques())
        is_known = self.module.automatic_optimization and not self._clears_itself and not replaces
        return is_known and is_overridden(self.module, "on_after_backward")

    def batch_starts(self, batch_idx: int) -> None:
        """Begins a training batch."""
        self._nesting.clear()  # left from a step that raised
        self._is_beginning = False
        self._bypasses.has_batches = True
        self._tell("batch_starts", batch_idx)

    def zero_grad(self) -> None:
        """Begins an accumulation window: gradients are about to be cleared."""
        if not self._clears_itself:  # else before_backward sees whether they were
            self._begin_window()

    def before_backward(self, loss: Tensor) -> None:
        """Records the loss, before its gradients are added to those of the window."""
        if not any_gradient(self.trainer, counts_zeros=not self._clears_itself):  # they were cleared elsewhere
            self._begin_window()
        self._early = {
            optimizer: step
            for optimizer, step in self._early.items()
            if any(parameter.grad is not None for parameter in step.parameters)
        }
        self.loss = unscaled_loss(self.trainer, loss) if logs_now(self.trainer) else None
        self._bypasses.before_backward(loss)
        self._tell("before_backward", loss)

    def after_backward(self) -> None:
        """Counts a backward pass of the window."""
        self._passes += 1
        self._is_beginning = False
        self._saw_backward = True
        self._bypasses.after_backward()
        if self._joins_in_backward and ends_a_step(self.trainer):
            self._join_early(self.trainer.optimizers[0])
        self._tell("after_backward")

    def before_step(self, optimizer: Optimizer) -> None:
        """Changes and measures gradients, in the order of the techniques' positions."""
        self._hook(optimizer)  # it may have been created during the fit
        self._bypasses.step()
        early = self._early.pop(optimizer, None)
        share = self._close_window() if early is None else early.share
        step = self._open[optimizer] = Step(self, optimizer, share, self._served)
        # First sharpness, which replaces gradients; then penalties, centralization, noise, measurement, clipping.
        self._tell("step_begins", step)
        self._tell("before_step" if early is None else "add_no_terms", step)
        self._serve(step)

    def _before_clipping(self, clip: Callable[..., None], optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Wraps ``clip_gradients``, before which a training step that calls it would add the penalty to its loss."""
        bare = getattr(optimizer, "optimizer", optimizer)  # a module has Lightning's wrapper in hand
        is_within_step = bare in self._open and not self._passes
        if not is_within_step and bare not in self._early:
            self._join_early(bare)
        clip(optimizer, *args, **kwargs)

    def _join_early(self, optimizer: Optimizer) -> None:
        """Adds penalties and noise to gradients, which are then left out before the step itself."""
        step = self._early[optimizer] = Step(self, optimizer, self._close_window(), self._served, is_early=True)
        self._tell("add_terms", step)
        self._tell("terms_joined", step)
        self._serve(step)

    def _serve(self, step: Step) -> None:
        self._served = self._served | set(step.parameters if step.share else ())

    def _begin_window(self) -> None:
        self._passes = 0  # no earlier pass reaches a step
        self._served = set()
        self._early.clear()
        if not self._is_beginning:
            self._is_beginning = True
            self._tell("window_begins")

    def _close_window(self) -> float:
        passes, self._passes = self._passes, 0
        # We don't see loss.backward() called instead of self.manual_backward(); then every step is a new one.
        if passes or not self._saw_backward:
            self._served = set()
        return passes / self.trainer.accumulate_grad_batches if self.module.automatic_optimization else 1.0

    def after_step(self, optimizer: Optimizer) -> None:
        """Runs proximal operators, constraints, measurement, Lookahead, averages; not called if a scaler skips."""
        step = self._open.pop(optimizer, None)
        if step is None:
            self._refuse_unannounced()
            self._bypasses.step()
            step = Step(self, optimizer, 0.0, self._served)
        self._tell("after_step", step)

    def batch_ends(self, outputs: Any, batch_idx: int) -> None:
        """Ends a training batch; a step that is still open was skipped by a gradient scaler."""
        self._tell("batch_ends", outputs, batch_idx)
        self._open.clear()

    def epoch_ends(self) -> None:
        """Ends an epoch, after its last batch and its validation."""
        self._tell("epoch_ends")

    def validation_starts(self) -> None:
        """Begins a validation: averages are put into the module."""
        self._tell("validation_starts")

    def validation_batch_starts(self, batch_idx: int, dataloader_idx: int) -> None:
        """Begins a validation batch."""
        self._tell("validation_batch_starts", batch_idx, dataloader_idx)

    def validation_batch_ends(self) -> None:
        """Ends a validation batch."""
        self._tell("validation_batch_ends")

    def validation_epoch_ends(self) -> None:
        """Ends the batches of a validation: its measurements are logged."""
        self._tell("validation_epoch_ends")

    def validation_ends(self) -> None:
        """Ends a validation: trained weights are put back."""
        self._tell("validation_ends")

    def test_batch_starts(self, batch_idx: int, dataloader_idx: int) -> None:
        """Begins a test batch."""
        self._tell("test_batch_starts", batch_idx, dataloader_idx)

    def predict_batch_starts(self, batch_idx: int, dataloader_idx: int) -> None:
        """Begins a prediction batch."""
        self._tell("predict_batch_starts", batch_idx, dataloader_idx)

    def train_ends(self) -> None:
        """Ends training: averages are put in for good; then the best weights are restored."""
        self._bypasses.train_ends([session for _, session in self._members])
        self._tell("train_ends")

    # A batch that is run again for its gradients counts in no window

    def begins_again(self, batch_idx: int) -> None:
        """Begins a batch once more, with the same random numbers."""
        self._tell("batch_starts", batch_idx)

    def before_backward_again(self, loss: Tensor) -> None:
        """Begins the backward pass of a batch that is run again."""
        self._tell("before_backward", loss)

    def after_backward_again(self) -> None:
        """Ends the backward pass of a batch that is run again."""
        self._tell("after_backward")

    # The end

    def end(self, exception: BaseException | None = None) -> None:
        """Drops all sessions and removes all hooks; safe to call again.

        Args:
            exception: Exception that ended the run; None if it ended as planned.
        """
        _RUNS.pop(self.trainer, None)
        members, self._members = self._members, []
        with self._undo:
            for technique, session in members:
                session.ends(exception)
                technique.session_ended(session)
        self._listeners = {hook: [] for hook in self._listeners}

    # Listeners, and hooks of optimizers

    def _tell(self, hook: str, *arguments: Any) -> None:
        try:
            for listener in self._listeners[hook]:
                listener(*arguments)
        except StopIteration as error:  # which Lightning's loops would take for the end of the data
            raise RuntimeError(f"{hook} raised StopIteration") from error

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

    def _is_interrupted(self) -> bool:
        # Lightning's finders of learning rates and batch sizes train in the middle of a fit, without its callbacks.
        return all(callback is not self.leader for callback in callbacks_of(self.trainer))

    def _step_entered(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._nesting[optimizer] = self._nesting.get(optimizer, 0) + 1

    def _step_left(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # The hooks of a step that calls super().step() run twice.
        self._nesting[optimizer] = self._nesting.get(optimizer, 1) - 1
        if self._nesting[optimizer] == 0 and not self._is_interrupted():
            self.after_step(optimizer)

    def _refuse_unannounced(self) -> None:
        for technique in self.techniques():
            if technique.changes_gradients:
                raise unannounced(technique, self.module)


def _versions(parameters: list[nn.Parameter]) -> list[tuple[Tensor | None, int]]:
    gradients = (parameter.grad for parameter in parameters)
    return [(gradient, 0 if gradient is None else gradient._version) for gradient in gradients]


def _same(before: list[tuple[Tensor | None, int]], now: list[tuple[Tensor | None, int]]) -> bool:
    return len(before) == len(now) and all(
        one is other and version == later for (one, version), (other, later) in zip(before, now, strict=True)
    )


def trainable(optimizer: Optimizer) -> list[nn.Parameter]:
    """Returns an optimizer's non-empty parameters that currently require a gradient, in its order."""
    stepped: Iterable[nn.Parameter] = (weight for group in optimizer.param_groups for weight in group["params"])
    return [parameter for parameter in stepped if parameter.requires_grad and parameter.numel()]
