"""Running the batches of an optimizer step once more, so that everything but the gradients counts them once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from torch import Tensor

from lightning_reg.attach.gradients import scaler_scale
from lightning_reg.attach.insertion import StochasticSurgery
from lightning_reg.attach.module_memory import ModuleMemory
from lightning_reg.attach.technique import Technique, callbacks_of
from lightning_reg.core.wrapping import Handle, around

__all__ = ["SecondPass"]


@dataclass(frozen=True)
class _MicroBatch:
    """What a training step was given, and drew random numbers from."""

    arguments: tuple[Any, ...]
    index: int
    random: dict[str, Any]
    loss: Tensor | None


class SecondPass:
    """Remembers the micro-batches whose gradients have been accumulated, and runs them again.

    The same random numbers are drawn in both passes. Buffers, metrics, and whatever else the module keeps, are put back
    as the first pass left them; nothing is logged; the callbacks of the trainer aren't asked.

    Args:
        trainer: At fit start.
        pl_module: The module.
        is_wanted: Whether the step that is being made ready will ask for it; else nothing is remembered.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, is_wanted: Callable[[], bool]) -> None:
        self._trainer = trainer
        self._module = pl_module
        self._is_wanted = is_wanted
        self._window: list[_MicroBatch] = []
        self._is_running = False
        self.handles: list[Handle] = [
            # Around the strategy's, because layers around the module's own may be added later.
            around(trainer.strategy, "training_step", self._remember),
            around(pl_module, "log", self._unless_running),
        ]

    def begin_window(self) -> None:
        """Forgets all but the latest micro-batch; call in ``on_before_zero_grad``, which comes before its backward."""
        self._window = self._window[-1:]

    def run(self) -> Tensor | None:
        """Adds the gradients of all micro-batches of the window to those that there are, and forgets the window.

        They are averaged over processes, and carry the scale of a gradient scaler.

        Returns:
            By how much the mean loss differs from the first pass's; None where no batch had one.
        """
        window, self._window = self._window, []
        differences = []
        with self._counted_once():
            for micro_batch in window:
                is_last = micro_batch is window[-1]
                with _block_parallel_sync_behavior(self._trainer.strategy, block=not is_last):
                    loss = self._again(micro_batch)
                if loss is not None and micro_batch.loss is not None:
                    differences.append(loss.detach() - micro_batch.loss)
        return torch.stack(differences).mean() if differences else None

    def _again(self, micro_batch: _MicroBatch) -> Tensor | None:
        trainer, module = self._trainer, self._module
        techniques = [each for each in callbacks_of(trainer) if isinstance(each, Technique)]
        for each in techniques:
            each.begin_batch(trainer, micro_batch.index)
        _set_rng_states(micro_batch.random)
        loss = _loss_of(trainer.strategy.training_step(*micro_batch.arguments))
        if loss is None:  # this batch is skipped
            return None
        scale = scaler_scale(trainer, loss.device)
        scaled = loss / trainer.accumulate_grad_batches
        stochastic = [each for each in techniques if isinstance(each, StochasticSurgery)]
        for each in stochastic:
            each.on_before_backward(trainer, module, loss)
        module.backward(scaled if scale is None else scaled * scale)
        for each in stochastic:
            each.on_after_backward(trainer, module)
        return loss

    def _remember(self, training_step: Callable[..., Any], *args: Any) -> Any:
        if self._is_running or not self._is_wanted():
            return training_step(*args)
        random = _collect_rng_states()
        output = training_step(*args)
        loss = _loss_of(output)
        index = self._trainer.fit_loop.epoch_loop.batch_idx
        self._window.append(_MicroBatch(args, index, random, None if loss is None else loss.detach()))
        return output

    def _unless_running(self, log: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return None if self._is_running else log(*args, **kwargs)

    @contextmanager
    def _counted_once(self) -> Iterator[None]:
        trainer = self._trainer
        random, loggers = _collect_rng_states(), trainer.loggers
        memory = ModuleMemory(self._module, plain_tensors=False)
        trainer.loggers = [DummyLogger() for _ in loggers]
        self._is_running = True
        try:
            yield
        finally:
            self._is_running = False
            trainer.loggers = loggers
            memory.restore()
            _set_rng_states(random)


def _loss_of(output: Any) -> Tensor | None:
    loss: Tensor | None = output.get("loss") if isinstance(output, Mapping) else output
    return loss
