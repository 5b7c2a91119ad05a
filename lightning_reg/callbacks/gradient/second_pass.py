"""Running the batches of an optimizer step once more for their gradients, without repeating side effects."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.memory import is_oom_error
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_reg.callbacks.batch.loss_shares import LossShares, refuse_mean_beside_sum
from lightning_reg.callbacks.batch.weighted_losses import LOSSES, settings_of
from lightning_reg.core.batches import MISFITS, number_of_rows, reason_of, rows_of, whole_parts
from lightning_reg.core.checkpointing import will_have_gradients
from lightning_reg.core.copies.repetition import FirstPass, Repetition, loss_of
from lightning_reg.core.lightning import callbacks_of, is_overridden, scaler_scale, without_gradient_sync
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.functional.gradient.sharpness import hardest
from lightning_reg.settings import SettingError

__all__ = ["SecondPass"]

_BACKWARD_HOOKS = ("on_before_backward", "on_after_backward")


@dataclass(frozen=True)
class _Part:
    """The samples of a batch that are run again.

    Attributes:
        rows: Their indices, (n,).
        count: Number N of the batch's samples.
        difference: By how much the mean of their losses is higher than that of all samples.
        shares: How much each sample's losses count in the loss where they aren't means, (N,); None where unknown.
        widths: Number of columns of the losses' inputs.
    """

    rows: Tensor
    count: int
    difference: Tensor
    shares: Tensor | None
    widths: list[int]


@dataclass(frozen=True)
class _MicroBatch:
    """A training step that is to be run again.

    Attributes:
        part: Samples to run it again with; None for all.
    """

    first: FirstPass
    part: _Part | None


class SecondPass:
    """Records the micro-batches whose gradients have been accumulated, and runs them again.

    Both passes get the same batches and draw the same random numbers. In both, the backward hooks of the module and of
    other callbacks are called, which may mask gradients. The second pass has no other side effects.

    Args:
        is_wanted: Function that returns whether the coming step needs a second pass; if not, nothing is recorded.
        fraction: Share of the samples to run again, those with the largest losses.
    """

    def __init__(self, run: Run, is_wanted: Callable[[], bool], *, fraction: float = 1.0) -> None:
        self._fraction = fraction
        self._is_checked = fraction == 1  # whether samples could be selected once
        self._is_sum: bool | None = None  # whether the loss is a sum over samples; None before the first second pass
        self._share: Tensor | float = 0.0  # how much a sample's losses count in such a sum
        self._run = run
        self._is_wanted = is_wanted
        self._window: list[_MicroBatch] = []
        self._hooked = [callback for callback in callbacks_of(run.trainer) if _hooks_backward(callback)]
        self._repetition = Repetition(run, {type(callback).__name__: vars(callback) for callback in self._hooked})
        # Around the strategy's, because layers around the module's own may be added later.
        run.around(run.trainer.strategy, "training_step", self._remember)

    def begin_window(self) -> None:
        """Drops all but the latest micro-batch; call in ``on_before_zero_grad``, which precedes its backward."""
        self._window = self._window[-1:]

    def is_possible(self) -> bool:
        """Whether the window can be run again; otherwise it is dropped, with a warning."""
        lost = [name for micro_batch in self._window for name in micro_batch.first.lost]
        if lost:
            self._window = []
            rank_zero_warn(
                f"training_step has changed {', '.join(lost)} in place for the first time, of which there is no copy: "
                "this optimizer step is a plain one; from now on a copy is made"
            )
        return not lost

    def run(self) -> Tensor | None:
        """Adds the gradients of all micro-batches of the window to the present ones, and drops the window.

        They are averaged over processes, and carry the scale of a gradient scaler.

        Returns:
            Mean difference between the losses of the second and the first pass; None if no batch had a loss.
        """
        window, self._window = self._window, []
        differences = []
        with self._repetition.counted_once([micro_batch.first for micro_batch in window]):
            for micro_batch in window:
                is_last = micro_batch is window[-1]
                with nullcontext() if is_last else without_gradient_sync(self._run.trainer):
                    loss = self._again(micro_batch)
                if loss is not None and micro_batch.first.loss is not None:
                    differences.append(loss.detach() - micro_batch.first.loss - self._difference(micro_batch.part))
        return torch.stack(differences).mean() if differences else None

    def _again(self, micro_batch: _MicroBatch) -> Tensor | None:
        trainer, module = self._run.trainer, self._run.module
        self._repetition.begin(micro_batch.first)
        loss = self._step_again(micro_batch)
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

    def _step_again(self, micro_batch: _MicroBatch) -> Tensor | None:
        """Returns the loss of a training step that is run again; None if it skips its batch."""
        training_step = self._run.trainer.strategy.training_step
        batch, *others = micro_batch.first.arguments
        part = micro_batch.part
        if part is None:
            return loss_of(training_step(batch, *others))
        with ExitStack() as stack:
            shares = stack.enter_context(LossShares()) if self._is_sum is None else None
            try:
                loss = loss_of(training_step(rows_of(batch, part.rows), *others))
            except MISFITS as error:
                if isinstance(error, SettingError) or is_oom_error(error):
                    raise
                reason = reason_of(error)
                if whole := whole_parts(batch):
                    raise SettingError(
                        f"fraction must be 1 where a batch has {whole}, of which no part can be run again: "
                        f"the training step fails on some rows of all else: {reason}"
                    ) from error
                raise SettingError(
                    "fraction must be 1 where the training step fails on a part of its batch's samples, such as one "
                    f"that carries a state from batch to batch: {reason}"
                ) from error
        if loss is not None and shares is not None:
            self._learn(part, shares, loss)
        # A sum over a part of the samples is smaller by just that part.
        return loss * (part.count / len(part.rows)) if loss is not None and self._is_sum else loss

    def _difference(self, part: _Part | None) -> Tensor | float:
        """Returns by how much the loss of a part of the samples is higher in the first pass than that of all."""
        if part is None:
            return 0.0
        return part.difference * part.count * self._share if self._is_sum else part.difference

    def _learn(self, part: _Part, shares: LossShares, loss: Tensor) -> None:
        """Finds out whether the loss is a sum over samples, and refuses one that compares samples with each other.

        In a sum, a sample counts as much among others as among all; in a mean, all samples together do.

        Args:
            shares: Losses that were seen in the second pass.
            loss: Loss of the second pass.
        """
        count = len(part.rows)
        if count == part.count:  # from which nothing can be learned
            return
        for before, now in zip(part.widths, shares.widths(count), strict=False):
            if before - now == part.count - count:
                raise SettingError(
                    "fraction must be 1 where the training step compares the samples of a batch with each other, as "
                    f"contrastive losses do, but a loss has {before} columns for {part.count} samples and {now} for "
                    f"{count}"
                )
        again = shares.of_values(loss, count)
        if part.shares is None or again is None:
            self._is_sum = False
            return
        of_mean = (again.sum() / part.shares.sum()).log().abs()
        of_sum = (again.sum() / part.shares[part.rows].sum()).log().abs()
        self._is_sum = bool(of_sum < of_mean)
        self._share = part.shares.mean()
        if self._is_sum:
            refuse_mean_beside_sum(shares, loss, "fraction below 1")

    def _remember(self, training_step: Callable[..., Any], *args: Any) -> Any:
        is_wanted = self._is_wanted()
        if self._run.is_again or (self._is_checked and not is_wanted):
            return training_step(*args)
        before = [micro_batch.first for micro_batch in self._window]
        if self._fraction == 1:
            output, first = self._repetition.first(training_step, args, before)
            self._window.append(_MicroBatch(first, None))
            return output
        count = number_of_rows(args[0], doing="a part of them can be run again, as fraction asks")
        with _Losses(count) as losses, ExitStack() as stack:
            shares = stack.enter_context(LossShares()) if self._is_sum is None else LossShares()
            output, first = self._repetition.first(training_step, args, before)
        loss = loss_of(output)
        if loss is not None:
            self._is_checked = True
            values = losses.of_samples()
            rows = hardest(values, self._fraction)
            difference = values[rows].mean() - values.mean()
            part = _Part(rows, count, difference, shares.of_values(loss, count), shares.widths(count))
            self._window += [_MicroBatch(first, part)] if is_wanted else []
        return output


class _Losses(TorchFunctionMode):
    """Records each sample's loss at calls of torch's loss functions; everything runs unchanged.

    Args:
        count: Number of samples.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count
        self._values: list[Tensor] = []

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in LOSSES and will_have_gradients():  # otherwise it is a metric
            with torch.no_grad():
                values = func(*args, **{**settings_of(kwargs or {}), "reduction": "none"})
            if values.ndim and len(values) == self._count:
                self._values.append(values.flatten(1).mean(1) if values.ndim > 1 else values)
        return func(*args, **(kwargs or {}))

    def of_samples(self) -> Tensor:
        """Returns the sum of each sample's losses, (N,).

        Raises:
            SettingError: If no loss was seen.
        """
        if not self._values:
            names = ", ".join(loss.__name__ for loss in LOSSES)
            raise SettingError(
                f"fraction must be 1 where the training step calls none of {names} with one row for each of the "
                f"batch's {self._count} samples: by these losses those are chosen that are run again"
            )
        return torch.stack(self._values).sum(0)


def _hooks_backward(callback: Callback) -> bool:
    """Whether a callback isn't ours and has hooks around the backward pass."""
    return not isinstance(callback, Technique) and any(is_overridden(callback, hook) for hook in _BACKWARD_HOOKS)
