"""Running the batches of an optimizer step once more, so that everything but the gradients counts them once."""

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_reg.core.copies.held_state import Copied, HeldState, Moment, mark, size_of
from lightning_reg.core.gradients import local
from lightning_reg.core.lightning import (
    callbacks_of,
    is_overridden,
    logs_now,
    random_states,
    scaler_scale,
    set_random_states,
    without_gradient_sync,
)
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique

__all__ = ["SecondPass"]

_SMALL = 2**20  # bytes that are copied unasked
_LEARNING = 4  # windows in which tensors on accelerators are compared by value, which makes the host wait
_BACKWARD_HOOKS = ("on_before_backward", "on_after_backward")


@dataclass(frozen=True)
class _MicroBatch:
    """What a training step was given, and drew random numbers from."""

    arguments: tuple[Any, ...]
    held: HeldState
    before: Moment  # what else there was
    index: int
    random: dict[str, Any]
    loss: Tensor | None
    lost: list[str]  # what the step has changed of it, and of which there is no copy


class SecondPass:
    """Remembers the micro-batches whose gradients have been accumulated, and runs them again.

    Both passes get the same batches and draw the same random numbers. In both, the backward hooks of the module and of
    others' callbacks are called, which may mask gradients. Nothing else is to have a consequence. Parameters that
    optimizers train are left to the caller. All else that the module holds (a teacher, a queue, a hidden state) is in
    the second pass as it was in the first, and afterwards as the first has left it. For that, tensors that have been
    seen to change are copied, with every micro-batch.

    Args:
        is_wanted: Whether the step that is being made ready will ask for it; else nothing is remembered.
    """

    def __init__(self, run: Run, is_wanted: Callable[[], bool]) -> None:
        self._run = run
        self._is_wanted = is_wanted
        self._window: list[_MicroBatch] = []
        self._hooked = [callback for callback in callbacks_of(run.trainer) if _hooks_backward(callback)]
        roots = {type(callback).__name__: vars(callback) for callback in self._hooked}
        self._held = HeldState({"module": run.module, **roots}, self._owned)
        self._before: dict[int, tuple[Tensor, tuple[int, int]]] = {}
        self._compared: list[Tensor] = []
        self._sums: dict[torch.device, Tensor] = {}
        self._moving: set[str] = set()  # names of tensors that a first pass has changed
        self._of_batches: set[str] = set()  # the same of those in batches
        self._names: dict[int, str] = {}
        self._windows = 0
        self._copies_all = False
        # Around the strategy's, because layers around the module's own may be added later.
        run.around(run.trainer.strategy, "training_step", self._remember)
        run.around(run.module, "log", self._unless_running)

    def __deepcopy__(self, memo: dict[int, Any]) -> "SecondPass":
        """Returns itself: a copy of the module, whose ``log`` leads here, takes no memory of a step along."""
        return self

    def begin_window(self) -> None:
        """Forgets all but the latest micro-batch; call in ``on_before_zero_grad``, which comes before its backward."""
        self._window = self._window[-1:]

    def is_possible(self) -> bool:
        """Whether there is a window that can be run again; else it is forgotten, with a warning."""
        lost = [name for micro_batch in self._window for name in micro_batch.lost]
        if lost:
            self._window = []
            rank_zero_warn(
                f"training_step has changed {', '.join(lost)} in place for the first time, of which there is no copy: "
                "this optimizer step is a plain one; from now on a copy is made"
            )
        return not lost

    def run(self) -> Tensor | None:
        """Adds the gradients of all micro-batches of the window to those that there are, and forgets the window.

        They are averaged over processes, and carry the scale of a gradient scaler.

        Returns:
            By how much the mean loss differs from the first pass's; None where no batch had one.
        """
        window, self._window = self._window, []
        differences = []
        with self._counted_once(window):
            for micro_batch in window:
                is_last = micro_batch is window[-1]
                with nullcontext() if is_last else without_gradient_sync(self._run.trainer):
                    loss = self._again(micro_batch)
                if loss is not None and micro_batch.loss is not None:
                    differences.append(loss.detach() - micro_batch.loss)
        return torch.stack(differences).mean() if differences else None

    def _again(self, micro_batch: _MicroBatch) -> Tensor | None:
        trainer, module = self._run.trainer, self._run.module
        micro_batch.held.put_back()
        micro_batch.before.put_back(self._moving)
        self._run.begins_again(micro_batch.index)
        set_random_states(micro_batch.random)
        loss = _loss_of(trainer.strategy.training_step(*micro_batch.arguments))
        if loss is None:  # this batch is skipped
            return None
        scale = scaler_scale(trainer, loss.device)
        scaled = loss / trainer.accumulate_grad_batches
        scaled = scaled if scale is None else scaled * scale
        self._run.before_backward_again(scaled)
        for callback in self._hooked:
            callback.on_before_backward(trainer, module, scaled)
        module.on_before_backward(scaled)
        module.backward(scaled)
        self._run.after_backward_again()
        for callback in self._hooked:
            callback.on_after_backward(trainer, module)
        module.on_after_backward()
        return loss

    def _remember(self, training_step: Callable[..., Any], *args: Any) -> Any:
        if self._run.is_again or not self._is_wanted():
            return training_step(*args)
        tensors = self._held.look()
        if not self._window:
            self._note(tensors)
        known = {} if not self._window else self._unmoved(self._window[-1].before)
        before = self._held.moment(tensors, lambda name: self._copies_all or name in self._moving, known)
        held = HeldState({"batch": args})
        held.keep(lambda name, tensor: self._windows == 1 or size_of(tensor) <= _SMALL or name in self._of_batches)
        random = random_states()
        output = training_step(*args)
        lost = held.changed()
        self._of_batches.update(lost, held.changed_copies())
        loss = _loss_of(output)
        index = self._run.trainer.fit_loop.epoch_loop.batch_idx
        self._window.append(
            _MicroBatch(args, held, before, index, random, None if loss is None else loss.detach(), lost)
        )
        return output

    def _unless_running(self, log: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return None if self._run.is_again else log(*args, **kwargs)

    # What the module holds

    def _owned(self) -> set[int]:
        # Those that are not trained (a teacher's among all the module's) are moved by the step, if at all.
        groups = (group for optimizer in self._run.trainer.optimizers for group in optimizer.param_groups)
        return {id(parameter) for group in groups for parameter in group["params"] if parameter.requires_grad}

    def _size_of_weights(self) -> int:
        groups = (group for optimizer in self._run.trainer.optimizers for group in optimizer.param_groups)
        return sum(size_of(parameter) for group in groups for parameter in group["params"])

    def _note(self, tensors: list[tuple[str, Tensor]]) -> None:
        """Notes what there is before the first pass."""
        self._windows += 1
        self._before = {id(tensor): (tensor, mark(tensor)) for _, tensor in tensors}
        self._names = {id(tensor): name for name, tensor in tensors}
        # A teacher that begins as its student doesn't move in a first pass, but does in a second one.
        size = sum(size_of(tensor) for _, tensor in tensors)
        self._copies_all = self._windows <= _LEARNING and size <= max(self._size_of_weights(), _SMALL)
        # Version counters don't see what is written by ``.data``, as teachers often are.
        by_value = self._windows <= _LEARNING or logs_now(self._run.trainer)
        self._compared = [
            tensor
            for name, tensor in tensors
            if name not in self._moving and _has_sum(tensor) and (by_value or tensor.device.type == "cpu")
        ]
        self._sums = _sums(self._compared)

    def _moved_silently(self) -> set[int]:
        now = _sums(self._compared)
        if all(torch.equal(sums, now[device]) for device, sums in self._sums.items()):
            return set()
        both = ((tensor, _sums([tensor])[tensor.device]) for tensor in self._compared)
        before = {device: iter(sums.unbind()) for device, sums in self._sums.items()}
        return {id(tensor) for tensor, value in both if not torch.equal(value[0], next(before[tensor.device]))}

    def _unmoved(self, moment: Moment, silently: Set[int] = frozenset()) -> dict[int, Copied]:
        """Returns the copies, by ``id`` of the tensor, of those that don't change without a sign."""
        return {
            id(copied.tensor): copied
            for copied in moment.copied
            if copied.name not in self._moving and id(copied.tensor) not in silently
        }

    @contextmanager
    def _counted_once(self, window: list[_MicroBatch]) -> Iterator[None]:
        trainer, loggers = self._run.trainer, self._run.trainer.loggers
        random = random_states()
        silently = self._moved_silently()
        to_be_written = {id(copied.tensor) for micro_batch in window for copied in micro_batch.before.copied}
        known = {} if not window else self._unmoved(window[-1].before, silently)

        def is_copied(name: str, tensor: Tensor) -> bool:
            before = self._before.get(id(tensor))
            if before is None:  # it is new
                return id(tensor) in to_be_written or name in self._moving or size_of(tensor) <= _SMALL
            if before[1] != mark(tensor) or id(tensor) in silently:
                self._moving.add(name)
            return self._copies_all or name in self._moving or id(tensor) in to_be_written

        self._held.keep(is_copied, known)
        self._held.set_aside()
        trainer.loggers = [DummyLogger() for _ in loggers]
        self._run.is_again = True
        try:
            yield
        finally:
            self._run.is_again = False
            trainer.loggers = loggers
            self._moving.update(self._held.changed_copies())
            by_value = {self._names[key] for key in self._moved_silently()} - self._moving
            surprises = sorted({*self._held.changed(), *(() if self._copies_all else by_value)})
            self._moving.update(by_value)
            self._held.put_back()
            self._held.forget()
            self._before, self._names, self._compared, self._sums = {}, {}, [], {}
            set_random_states(random)
        if surprises:
            self._moving.update(surprises)
            rank_zero_warn(
                f"{', '.join(surprises)} changed when the step was run again, but not when it was run first, and so "
                "changed once too often; from now on it is put back"
            )


def _hooks_backward(callback: Callback) -> bool:
    """Whether it is somebody else's and acts around the backward pass."""
    return not isinstance(callback, Technique) and any(is_overridden(callback, hook) for hook in _BACKWARD_HOOKS)


def _has_sum(tensor: Tensor) -> bool:
    plain = tensor.layout == torch.strided and tensor.device.type != "meta" and tensor.is_leaf
    return plain and not tensor.is_complex() and tensor.numel() > 0 and not tensor.is_inference()


@torch.no_grad()
def _sums(tensors: list[Tensor]) -> dict[torch.device, Tensor]:
    """Returns the sums of absolute values, by device."""
    devices: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        devices.setdefault(tensor.device, []).append(_floating(local(tensor)))
    return {
        device: torch.stack([norm.float() for norm in torch._foreach_norm(group, 1)])
        for device, group in devices.items()
    }


def _floating(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_floating_point() else tensor.double()


def _loss_of(output: Any) -> Tensor | None:
    loss: Tensor | None = output.get("loss") if isinstance(output, Mapping) else output
    return loss
