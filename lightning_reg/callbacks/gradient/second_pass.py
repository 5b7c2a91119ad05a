"""Running the batches of an optimizer step once more, so that everything but the gradients counts them once."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_reg.core.copies.repetition import FirstPass, Repetition, loss_of
from lightning_reg.core.lightning import callbacks_of, is_overridden, scaler_scale, without_gradient_sync
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique

__all__ = ["SecondPass"]

_BACKWARD_HOOKS = ("on_before_backward", "on_after_backward")


class SecondPass:
    """Remembers the micro-batches whose gradients have been accumulated, and runs them again.

    Both passes get the same batches and draw the same random numbers. In both, the backward hooks of the module and of
    others' callbacks are called, which may mask gradients. Nothing else is to have a consequence.

    Args:
        is_wanted: Whether the step that is being made ready will ask for it; else nothing is remembered.
    """

    def __init__(self, run: Run, is_wanted: Callable[[], bool]) -> None:
        self._run = run
        self._is_wanted = is_wanted
        self._window: list[FirstPass] = []
        self._hooked = [callback for callback in callbacks_of(run.trainer) if _hooks_backward(callback)]
        self._repetition = Repetition(run, {type(callback).__name__: vars(callback) for callback in self._hooked})
        # Around the strategy's, because layers around the module's own may be added later.
        run.around(run.trainer.strategy, "training_step", self._remember)

    def begin_window(self) -> None:
        """Forgets all but the latest micro-batch; call in ``on_before_zero_grad``, which comes before its backward."""
        self._window = self._window[-1:]

    def is_possible(self) -> bool:
        """Whether there is a window that can be run again; else it is forgotten, with a warning."""
        lost = [name for first in self._window for name in first.lost]
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
        with self._repetition.counted_once(window):
            for first in window:
                is_last = first is window[-1]
                with nullcontext() if is_last else without_gradient_sync(self._run.trainer):
                    loss = self._again(first)
                if loss is not None and first.loss is not None:
                    differences.append(loss.detach() - first.loss)
        return torch.stack(differences).mean() if differences else None

    def _again(self, first: FirstPass) -> Tensor | None:
        trainer, module = self._run.trainer, self._run.module
        self._repetition.begin(first)
        loss = loss_of(trainer.strategy.training_step(*first.arguments))
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
        output, first = self._repetition.first(training_step, args, self._window)
        self._window.append(first)
        return output


def _hooks_backward(callback: Callback) -> bool:
    """Whether it is somebody else's and acts around the backward pass."""
    return not isinstance(callback, Technique) and any(is_overridden(callback, hook) for hook in _BACKWARD_HOOKS)
