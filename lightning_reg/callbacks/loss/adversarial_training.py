"""Training on adversarial inputs: bounded perturbations that raise the loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.loss.input_term import refusing_reentrant
from lightning_reg.core.batches import Key, check_key, floating_part_of, with_parts
from lightning_reg.core.copies.repetition import Repetition, loss_of
from lightning_reg.core.facts import Chart, Log, Place
from lightning_reg.core.lightning import callbacks_of, instance_number, is_compiled, logs_now, scaler_scale
from lightning_reg.core.schedules import ScheduledStrength, StrengthSchedule, check_schedule
from lightning_reg.core.session import Session, kept
from lightning_reg.core.step import Run
from lightning_reg.core.streams import base_seed, check_seed, random_stream
from lightning_reg.core.technique import Technique
from lightning_reg.functional.autograd import gradient_by_inputs
from lightning_reg.functional.loss.adversarial import random_start, range_of, sign_step, within
from lightning_reg.settings import SettingError, check_count, check_range

__all__ = ["AdversarialTraining"]


class AdversarialTraining(Technique):
    """Trains on adversarial inputs beside the clean ones: FGSM, and PGD where there are several ``steps``.

    What it does: runs the training step on the batch as it is, moves every input within a box of half width ε along the
    sign of the loss's gradient by the inputs, so that the loss rises, and runs the training step once more there. The
    loss that goes into backward is α times the clean one plus 1 − α times the adversarial one. Each is the whole loss
    that the step returns, so other terms belong to both. All passes get the same dropout masks and the same mixing;
    what the module logs, counts, and keeps (metrics, BatchNorm's statistics, teachers, queues) is of the clean pass
    alone.

    When to use: for predictions that are robust to small changes of the inputs; on tables, where it is one of the
    regularizers of Kadra et al. (2021), it more often hurt than helped by itself: 16 tables won, 23 lost. When not:
    for accuracy on clean images, which it lowers; where a step's time is short; on integer inputs.

    Cost: with FGSM two forward passes and about two and a half backward passes; with k steps k − 1 more of both. Memory
    of two graphs; of one where ``clean_weight`` is 0. State: two numbers per column or channel.

    Interacts with: BatchNorm, which in the adversarial pass normalizes by that batch's statistics; its running ones
    are of clean inputs. ``SharpnessAwareMinimization`` runs all of it again. Compiled networks need one more forward
    pass. Activation checkpointing has to be non-reentrant. Each pass is differentiated by what it has made of teachers
    and queues itself; only beside gradients of ``torch.func`` in the step these have to run without a graph. Columns
    that the network reads as codes have no gradient and aren't changed; one-hot columns move within [0, 1].

    Deviates from the papers: inputs are kept within the range seen so far, of each column of a table and each channel
    of images, instead of [0, 1], which standardized inputs don't lie in. The first step starts at the inputs unless
    ``random_start``.

    Args:
        eps: Largest change ε of an entry, in units of the inputs as the network gets them, at least 0. On inputs that
            were divided by a standard deviation s, 8/255 of the raw range is 8/255/s.
        steps: Number of steps of the attack, at least 1: 1 for FGSM, 7 or 10 are usual for PGD.
        step_size: Length of a step, positive; where None, ε for one step, 2.5 ε / ``steps`` for several.
        random_start: Whether the attack begins at a random point of the box rather than at the inputs, which takes one
            more pass.
        clean_weight: Share α of the clean loss, in [0, 1]: 0.5 as in Goodfellow et al., 0 as in Madry et al.; with 1
            nothing is attacked.
        clip: Range that adversarial inputs are clipped to: ``"seen"`` for that of the inputs so far, two numbers for
            lower and upper bound, or None for no clipping.
        input_key: Position of the inputs in a batch: an index, a name, or a getter and a setter.
        seed: Seed of the random numbers; that of ``seed_everything`` where None.
        schedule: Factor of ε over the course of training; constant where None.

    Logs:
        ``adversarial/loss_rise``, by how much the loss is higher at the adversarial inputs, at the steps the trainer
        logs.

    Raises:
        SettingError: If a setting is out of its range, the module optimizes manually, or a second such callback has an
            ``eps`` above 0; at the first batch, if its inputs aren't of a floating dtype, or the loss doesn't depend on
            them.

    Reference:
        Ian J. Goodfellow, Jonathon Shlens, Christian Szegedy: Explaining and Harnessing Adversarial Examples, ICLR
        2015, arXiv:1412.6572. Aleksander Madry, Aleksandar Makelov, Ludwig Schmidt, Dimitris Tsipras, Adrian Vladu:
        Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018, arXiv:1706.06083.

    >>> AdversarialTraining(eps=0.1).steps
    1
    """

    place = Place.LOSS
    adds_to_loss = True
    charts = (Chart("Penalties", "rise of the loss at adversarial inputs", r"adversarial/loss_rise"),)
    usual_ranges = (Log("eps", 1e-3, 0.3),)

    def __init__(
        self,
        *,
        eps: float,
        steps: int = 1,
        step_size: float | None = None,
        random_start: bool = False,
        clean_weight: float = 0.5,
        clip: Literal["seen"] | tuple[float, float] | None = "seen",
        input_key: Key = 0,
        seed: int | None = None,
        schedule: StrengthSchedule | None = None,
    ) -> None:
        super().__init__()
        check_range("eps", eps, low=0)
        check_count("steps", steps, high=10**4)
        if step_size is not None:
            check_range("step_size", step_size, low=0, low_open=True)
        check_range("clean_weight", clean_weight, low=0, high=1)
        check_key("input_key", input_key)
        check_seed(seed)
        check_schedule(schedule)
        self.eps = eps
        self.steps = steps
        self.step_size = step_size
        self.random_start = random_start
        self.clean_weight = clean_weight
        self.clip = _checked(clip)
        self.input_key = input_key
        self.seed = seed
        self.schedule = schedule

    @property
    @override
    def state_key(self) -> str:
        where = self.input_key if isinstance(self.input_key, int | str) else "a getter"
        return self._generate_state_key(eps=self.eps, steps=self.steps, clip=self.clip, input_key=where)

    state_dict = Technique.saved_state
    load_state_dict = Technique.load_saved_state

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return AdversarialSession(self, run)


def _checked(clip: Any) -> Literal["seen"] | tuple[float, float] | None:
    if clip is None or (isinstance(clip, str) and clip == "seen"):
        return clip  # type: ignore[return-value]  # it is that text
    if not isinstance(clip, tuple | list) or len(clip) != 2:
        raise SettingError(f"clip must be 'seen', two numbers or None, but is {clip!r}")
    low, high = clip
    check_range("clip's first number", low, low=float("-inf"))
    check_range("clip's second number", high, low=low, low_open=True)
    return low, high


@dataclass(eq=False)
class AdversarialSession(Session[AdversarialTraining]):
    """One fit of adversarial training.

    Attributes:
        seen: Smallest and largest values of the inputs so far, (2, ...); empty before the first batch.
        factor: Factor of ε by the schedule.
        name: Name of the technique in logged tags.
        number: Index of this technique among the callbacks of its class.
        repetition: Record from which a training step is run again.
        batch_idx: Index of the current training batch.
        is_attached: Whether the training step is wrapped.
        is_checked: Whether an attack has succeeded once.
    """

    seen: Tensor = kept(default_factory=lambda: torch.empty(0))
    factor: ScheduledStrength = field(init=False)
    name: str = field(init=False)
    number: int = field(init=False)
    repetition: Repetition = field(init=False)
    batch_idx: int = field(default=0, init=False)
    is_attached: bool = field(default=False, init=False)
    is_checked: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        technique, run = self.technique, self.run
        if not run.module.automatic_optimization:
            raise SettingError(
                f"automatic_optimization must be True with {type(technique).__name__}: under manual optimization the "
                "adversarial loss can't reach the one that you hand to manual_backward"
            )
        attacks = [
            other for other in callbacks_of(run.trainer) if isinstance(other, AdversarialTraining) and other.eps > 0
        ]
        if technique.eps > 0 and len(attacks) > 1:
            raise SettingError(
                f"callbacks must hold one {type(technique).__name__} with eps above 0, but hold {len(attacks)}: each "
                "moves the inputs that the other takes the gradient by"
            )
        self.factor = ScheduledStrength(technique.schedule, run.trainer)
        self.name = "adversarial" + technique.suffix(run.trainer)
        self.number = instance_number(run.trainer, technique)
        self.repetition = Repetition(run, keeps_graphs=True)

    @override
    def batch_starts(self, batch_idx: int) -> None:
        self.batch_idx = batch_idx
        if not self.is_attached:  # not earlier: each pass includes the layers of others
            self.is_attached = True
            self.run.around_step("training_step", self._step)

    def _step(self, training_step: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        technique, trainer = self.technique, self.run.trainer
        if logs_now(trainer):
            self.factor.log(self.run.module, self.name)
        eps = technique.eps * self.factor.now(trainer)
        # The first step is attacked even if a schedule begins at 0: a step that can't be attacked is an error now.
        if technique.eps == 0 or technique.clean_weight == 1 or (eps == 0 and self.is_checked):
            return training_step(batch, *args, **kwargs)
        inputs = floating_part_of(batch, technique.input_key, name="input_key", technique=type(technique).__name__)
        self._note_range(inputs)

        def on(given: Any) -> Any:
            return training_step(given, *args, **kwargs)

        # torch.compile reads the gradient of its inputs, which a copy doesn't have, and warns.
        step = partial(_at, on, technique.input_key, batch, copies=not self._is_compiled())
        return self._attacked(step, batch, inputs, eps)

    def _is_compiled(self) -> bool:
        return any(map(is_compiled, self.run.module.modules()))

    def _attacked(self, step: Callable[[Tensor], Any], batch: Any, inputs: Tensor, eps: float) -> Any:
        """Runs the training step on clean and on adversarial inputs.

        Args:
            step: Function that runs the training step on given inputs.
            inputs: Clean inputs of the batch.
            eps: Current value of ε.
        """
        technique = self.technique
        clean_inputs = _leaf(inputs)
        output, first = self.repetition.first(lambda _: step(clean_inputs), (batch,))
        clean = loss_of(output)
        if clean is None or first.lost:  # this batch is skipped, or was changed without a copy
            return output
        # Compiled code frees its graph's buffers even with retain_graph.
        shares = technique.clean_weight > 0
        is_reused = not technique.random_start and not (shares and self._is_compiled())
        gradient = self._gradient(clean, clean_inputs, keep_graph=shares) if is_reused else None
        with self.repetition.counted_once([first]):
            attacked = inputs.detach()
            if technique.random_start:
                attacked = self._clipped(random_start(attacked, eps, generator=self._generator()))
            for _ in range(technique.steps):
                if gradient is None:
                    leaf = _leaf(attacked)
                    loss = loss_of(self.repetition.again(first, partial(step, leaf)))
                    if loss is None:
                        return output
                    gradient = self._gradient(loss, leaf, keep_graph=False)
                with torch._C.DisableTorchFunction(), torch.no_grad():
                    attacked = self._moved(attacked, gradient, inputs, eps)
                gradient = None
            adversarial = loss_of(self.repetition.again(first, partial(step, attacked)))
        self.is_checked = True
        if adversarial is None or eps == 0:
            return output
        if logs_now(self.run.trainer):
            self.run.log(f"{self.name}/loss_rise", adversarial.detach() - clean.detach())
        loss = technique.clean_weight * clean + (1 - technique.clean_weight) * adversarial if shares else adversarial
        # The user's own dictionary isn't changed.
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def _moved(self, attacked: Tensor, gradient: Tensor, inputs: Tensor, eps: float) -> Tensor:
        technique = self.technique
        size = (1.0 if technique.steps == 1 else 2.5 / technique.steps) * eps
        size = size if technique.step_size is None else technique.step_size
        return self._clipped(sign_step(attacked, gradient, inputs.detach(), eps=eps, step_size=size))

    def _gradient(self, loss: Tensor, inputs: Tensor, *, keep_graph: bool) -> Tensor:
        scale = scaler_scale(self.run.trainer, loss.device)  # else small gradients underflow in half precision
        with torch._C.DisableTorchFunction(), refusing_reentrant(type(self.technique).__name__):
            return gradient_by_inputs(loss if scale is None else loss * scale, inputs, keep_graph=keep_graph)

    def _note_range(self, inputs: Tensor) -> None:
        if self.technique.clip != "seen":
            return
        low, high = range_of(inputs.detach())
        # One reduction for both. Every process needs them: only those of the first are in checkpoints.
        both = torch.as_tensor(self.run.trainer.strategy.reduce(torch.stack((-low, high)), reduce_op="max"))
        now = torch.stack((-both[0], both[1]))
        before = self.seen.to(now) if self.seen.numel() else now
        self.seen = torch.stack((torch.minimum(before[0], now[0]), torch.maximum(before[1], now[1])))

    def _clipped(self, inputs: Tensor) -> Tensor:
        clip = self.technique.clip
        if clip is None:
            return inputs
        low, high = self.seen if clip == "seen" else clip
        return within(inputs, low, high)

    def _generator(self) -> torch.Generator:
        module = self.run.module
        position = (module.global_rank, module.current_epoch, self.batch_idx)
        stream = random_stream(base_seed(self.technique.seed), *position, type(self.technique).__name__, self.number)
        return torch.Generator().manual_seed(stream.getrandbits(63))


def _at(training_step: Callable[[Any], Any], key: Key, batch: Any, inputs: Tensor, *, copies: bool) -> Any:
    """Runs a training step on other inputs, or on a copy: the step may change them in place, but not a leaf."""
    return training_step(with_parts(batch, [(key, inputs.clone() if copies else inputs)]))


def _leaf(inputs: Tensor) -> Tensor:
    """Returns inputs as a leaf that requires a gradient."""
    # Of a tensor that was made in inference mode only a copy can have a gradient.
    return (inputs.clone() if inputs.is_inference() else inputs.detach()).requires_grad_()
