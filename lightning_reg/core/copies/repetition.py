"""Running a training step again without repeating its side effects."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _NormBase
from torchmetrics import Metric
from typing_extensions import Self

from lightning_reg.core.copies.held_state import Copied, HeldState, Moment, mark, size_of
from lightning_reg.core.gradients import local
from lightning_reg.core.lightning import logs_now, random_states, set_random_states
from lightning_reg.core.step import Run
from lightning_reg.functional.norms import norms_of
from lightning_reg.settings import SettingError

__all__ = ["FirstPass", "Repetition", "loss_of"]

_SMALL = 2**20  # bytes up to which tensors are copied in any case
_LEARNING = 4  # windows in which tensors on accelerators are compared by value, which makes the host wait


@dataclass(frozen=True)
class FirstPass:
    """The state at the start of a training step, and its loss.

    Attributes:
        arguments: Arguments of the training step.
        held: State of the arguments.
        before: State of everything else.
        index: Index of the batch in its epoch.
        random: States of the global random number generators.
        loss: Loss that the step returned; None if the batch is skipped.
        lost: Names of tensors in the arguments that the step changed, and that were not copied.
    """

    arguments: tuple[Any, ...]
    held: HeldState
    before: Moment
    index: int
    random: dict[str, Any]
    loss: Tensor | None
    lost: list[str]


class Repetition:
    """Saves the state at the start of training steps, and restores it to run them again.

    All passes get the same batches and draw the same random numbers, and only the first one has side effects.
    Parameters that optimizers train are left to the caller. Everything else that the module holds (a teacher, a queue,
    a hidden state) is in a repeated pass as it was in the first, and afterwards as the first has left it. For that,
    tensors that have been seen to change are copied at every pass.

    Args:
        further: Further objects to restore, by name.
        keeps_graphs: Whether graphs of repeated passes must stay usable after the state is restored.
    """

    def __init__(self, run: Run, further: Mapping[str, Any] | None = None, *, keeps_graphs: bool = False) -> None:
        self._run = run
        self._keeps_graphs = keeps_graphs
        self._held = HeldState({"module": run.module, **(further or {})}, self._owned)
        self._before: dict[int, tuple[Tensor, tuple[int, int]]] = {}
        self._compared: list[Tensor] = []
        self._sums: dict[torch.device, Tensor] = {}
        self._moving: set[str] = set()  # names of tensors that a first pass has changed
        self._of_batches: set[str] = set()  # the same for tensors in batches
        self._names: dict[int, str] = {}
        self._windows = 0
        self._copies_all = False
        self._batches: list[HeldState] = []  # as the first passes have left them, while graphs are kept
        self._takes_hooks = True  # whether nothing in the step refuses hooks on what graphs save
        self._saved: tuple[tuple[int, int], bool] = (0, 0), False  # numbers of tensors, and what was found then
        self._is_looked_at = False  # whether no pass has run since the state was last looked at
        run.around(run.module, "log", self._unless_running)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Returns itself, so that a copy of the module, whose ``log`` refers to it, doesn't copy the saved steps."""
        return self

    def first(
        self, training_step: Callable[..., Any], arguments: tuple[Any, ...], window: Sequence[FirstPass] = ()
    ) -> tuple[Any, FirstPass]:
        """Runs a training step for the first time; returns its output, and the record needed to run it again.

        Args:
            training_step: Function to call with the arguments.
            window: First passes of earlier steps that are to be run again together with this one.
        """
        tensors = self._held.look()
        if not window:
            self._note(tensors)
        known = {} if not window else self._unmoved(window[-1].before)
        before = self._held.moment(tensors, lambda name: self._copies_all or name in self._moving, known)
        held = HeldState({"batch": arguments})
        held.keep(lambda name, tensor: self._windows == 1 or size_of(tensor) <= _SMALL or name in self._of_batches)
        random = random_states()
        output = training_step(*arguments)
        lost = held.changed()
        self._of_batches.update(lost, held.changed_copies())
        loss = loss_of(output)
        index = self._run.trainer.fit_loop.epoch_loop.batch_idx
        loss = None if loss is None else loss.detach()
        return output, FirstPass(arguments, held, before, index, random, loss, lost)

    def begin(self, first: FirstPass) -> None:
        """Restores the state at the start of a training step, within :meth:`counted_once`.

        Args:
            first: The step's first pass.
        """
        first.held.put_back(silently=self._keeps_graphs)
        first.before.put_back(self._moving, silently=self._keeps_graphs, is_looked_at=self._is_looked_at)
        self._is_looked_at = False
        self._run.begins_again(first.index)
        set_random_states(first.random)

    def again(self, first: FirstPass, training_step: Callable[[], Any]) -> Any:
        """Runs a training step again, within :meth:`counted_once`, so that its graph outlives the state it ran in.

        Args:
            first: The step's first pass.

        Returns:
            Output of the training step.
        """
        self.begin(first)
        if self._takes_hooks and (self._batches or self._is_saved()):
            try:
                # What the step has changed and saved for backward is put back before.
                with saved_tensors_hooks(self._aside, _unchanged):
                    return training_step()
            except RuntimeError as error:
                if "saved tensor hooks" not in str(error):  # as transforms of torch.func say
                    raise
            self._takes_hooks = False
            self.begin(first)
        return training_step()

    def _is_saved(self) -> bool:
        """Whether graphs may save what steps change, other than statistics and metrics, which only evaluation reads."""
        numbers = len(self._moving), len(self._before)
        if self._saved[0] != numbers:
            parts = list(self._run.module.modules())
            norms = (part.buffers(recurse=False) for part in parts if isinstance(part, _NormBase))
            metrics = (part.metric_state.values() for part in parts if isinstance(part, Metric))
            read_later = {id(value) for values in (*norms, *metrics) for value in values}
            moving = {key for key in self._before if self._names[key] in self._moving}
            self._saved = numbers, not moving <= read_later
        return self._saved[1]

    def _aside(self, tensor: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            saved = tensor.detach()  # a graph mustn't refer to its own output
            for batch in self._batches:
                saved = batch.aside(saved, self._of_batches)
            return self._held.aside(saved, self._moving)

    def _unless_running(self, log: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return None if self._run.is_again else log(*args, **kwargs)

    # State of the module

    def _owned(self) -> set[int]:
        # Frozen ones (a teacher's, in an optimizer of all parameters) are changed by the step, if at all.
        groups = (group for optimizer in self._run.trainer.optimizers for group in optimizer.param_groups)
        return {id(parameter) for group in groups for parameter in group["params"] if parameter.requires_grad}

    def _size_of_weights(self) -> int:
        groups = (group for optimizer in self._run.trainer.optimizers for group in optimizer.param_groups)
        return sum(size_of(parameter) for group in groups for parameter in group["params"])

    def _note(self, tensors: list[tuple[str, Tensor]]) -> None:
        """Records the tensors before the first pass."""
        self._windows += 1
        self._before = {id(tensor): (tensor, mark(tensor)) for _, tensor in tensors}
        self._names = {id(tensor): name for name, tensor in tensors}
        # A teacher that starts equal to its student doesn't change in the first pass, but does in the second.
        size = sum(size_of(tensor) for _, tensor in tensors)
        self._copies_all = self._windows <= _LEARNING and size <= max(self._size_of_weights(), _SMALL)
        # Version counters miss what is written through ``.data``, as teachers often are.
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
        """Returns the copies, by ``id`` of the tensor, of tensors that don't change unnoticed."""
        return {
            id(copied.tensor): copied
            for copied in moment.copied
            if copied.name not in self._moving and id(copied.tensor) not in silently
        }

    @contextmanager
    def counted_once(self, window: Sequence[FirstPass]) -> Iterator[None]:
        """Enters a context in which steps are run again; afterwards the state is as the first passes have left it.

        Args:
            window: First passes of the steps, in order.
        """
        trainer, loggers = self._run.trainer, self._run.trainer.loggers
        random = random_states()
        silently = self._moved_silently()
        to_be_written = {id(copied.tensor) for first in window for copied in first.before.copied}
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
        changes_batches = self._keeps_graphs and bool(self._of_batches)
        self._batches = [HeldState({"batch": first.arguments}) for first in window if changes_batches]
        for batch in self._batches:
            batch.keep(lambda name, _: name in self._of_batches)
        self._is_looked_at = True
        trainer.loggers = [DummyLogger() for _ in loggers]
        was_again, self._run.is_again = self._run.is_again, True
        try:
            yield
        except StopIteration as error:  # which Lightning's loops would take for the end of the data
            raise SettingError(
                "training_step must take a batch that can be read twice, and read nothing else that can't be, because "
                "it is run again, but an iterator, of the batch or of its own, has nothing left"
            ) from error
        finally:
            self._run.is_again = was_again
            trainer.loggers = loggers
            self._moving.update(self._held.changed_copies())
            by_value = {self._names[key] for key in self._moved_silently()} - self._moving
            surprises = sorted({*self._held.changed(), *(() if self._copies_all else by_value)})
            self._moving.update(by_value)
            for held in (self._held, *self._batches):
                held.put_back(silently=self._keeps_graphs)
                held.forget()
            self._batches = []
            self._before, self._names, self._compared, self._sums = {}, {}, [], {}
            set_random_states(random)
        if surprises:
            self._moving.update(surprises)
            rank_zero_warn(
                f"{', '.join(surprises)} changed when the step was run again, but not when it was run first, and so "
                "changed once too often; from now on it is put back"
            )


def _unchanged(saved: Tensor) -> Tensor:
    return saved


def _has_sum(tensor: Tensor) -> bool:
    plain = tensor.layout == torch.strided and tensor.device.type != "meta" and tensor.is_leaf
    return plain and not tensor.is_complex() and tensor.numel() > 0 and not tensor.is_inference()


@torch.no_grad()
def _sums(tensors: list[Tensor]) -> dict[torch.device, Tensor]:
    """Returns the sums of absolute values, by device."""
    devices: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        part = local(tensor)
        devices.setdefault(part.device, []).append(part if part.is_floating_point() else part.double())
    return {device: norms_of(group, 1).float() for device, group in devices.items()}


def loss_of(output: Any) -> Tensor | None:
    """Returns the loss in the output of a training step; None if there is none.

    The batch is skipped then, or Lightning says what a training step must return: a number is no loss.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else output
    return loss if isinstance(loss, Tensor) else None
