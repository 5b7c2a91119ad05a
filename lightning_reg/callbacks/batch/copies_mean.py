"""The loss of a repeated batch as the mean over its copies, also where the training step adds its samples up."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lightning_reg.callbacks.batch.loss_shares import LossShares, refuse_mean_beside_sum
from lightning_reg.core.copies.repetition import Repetition, loss_of
from lightning_reg.core.step import Run

__all__ = ["CopiesMean"]

_BETWEEN = 1.4  # a mean of twice as many samples is as large, a sum twice as large


class CopiesMean:
    """Makes the module's own loss of a repeated batch the mean over the copies, whatever its reduction.

    Whether the loss is a sum over samples is found out at the first batch. Where torch's losses that the training step
    calls don't all take means, the step runs once more, with the batch alone and no side effects.

    Args:
        times: Number of copies of each batch, at least 2.
        technique: Name of the calling technique, for error messages.
        repeats: Function that returns whether the latest batch has been repeated; all are where None.
    """

    def __init__(self, run: Run, times: int, *, technique: str, repeats: Callable[[], bool] | None = None) -> None:
        self._run = run
        self._times = times
        self._technique = technique
        self._repeats: Callable[[], bool] = repeats or (lambda: True)
        self._is_sum: bool | None = None
        self._notes = False
        self._called: LossShares | None = None
        self._own: Tensor | None = None
        # Terms that other techniques add to the loss are means.
        run.around_step("training_step", self._note, innermost=True)

    def run(self, repeated: Callable[[], Any], alone: Callable[[], Any], batch: Any) -> Any:
        """Runs a training step with a repeated batch; returns its output with the mean of the copies' losses.

        Args:
            repeated: Function that runs the training step with the repeated batch.
            alone: Function that runs it with ``batch`` as it is.
            batch: The batch before it was repeated.
        """
        output, own = self._decided(repeated, alone, batch) if self._is_sum is None else self._with_own(repeated)
        if own is None or not self._is_sum or not self._repeats():
            return output
        with torch._C.DisableTorchFunction():  # modes that watch the user's calls must not see this
            loss = loss_of(output) - (1 - 1 / self._times) * own  # type: ignore[operator]
        # The user's own dictionary isn't changed.
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def _note(self, training_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._notes:
            return training_step(*args, **kwargs)
        with self._called or nullcontext():
            output = training_step(*args, **kwargs)
        self._own = loss_of(output)
        return output

    def _with_own(self, step: Callable[[], Any], called: LossShares | None = None) -> tuple[Any, Tensor | None]:
        """Returns the output of a training step, and the loss of the module's own, whose parts ``called`` records."""
        self._notes, self._called = True, called
        try:
            return step(), self._own
        finally:
            self._notes, self._called, self._own = False, None, None

    def _decided(self, repeated: Callable[[], Any], alone: Callable[[], Any], batch: Any) -> tuple[Any, Tensor | None]:
        """Runs a training step as :meth:`_with_own`, and finds out whether its loss is a sum over samples."""
        called = LossShares()  # what the module calls; mixing calls others in their place
        with LossShares() as shares:
            output, own = self._with_own(repeated, called)
        if own is not None and self._repeats():
            self._is_sum = not called.are_means and self._is_larger(shares.of_all(own), alone, batch)
        return output, own

    def _is_larger(self, of_copies: Tensor, alone: Callable[[], Any], batch: Any) -> bool:
        """Whether losses count more in the loss of a repeated batch than in that of the batch alone."""
        repetition = Repetition(self._run, keeps_graphs=True)
        _, now = repetition.first(lambda _: None, (batch,))
        with repetition.counted_once([now]), _without_modes():
            repetition.begin(now)
            with LossShares() as shares:
                _, own = self._with_own(alone)
            if own is None or not bool(of_copies > _BETWEEN * shares.of_all(own)):
                return False
            refuse_mean_beside_sum(shares, own, self._technique)
        return True


@contextmanager
def _without_modes() -> Iterator[None]:
    """Leaves the modes of this library, which must not see a step that is run for information alone."""
    with ExitStack() as stack:
        while type(torch.overrides._get_current_function_mode()).__module__.startswith("lightning_reg."):  # type: ignore[no-untyped-call]
            stack.enter_context(torch.overrides._pop_mode_temporarily())
        yield
