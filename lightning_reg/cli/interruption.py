"""Ctrl-C handling that stops training where it can be resumed exactly."""

import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

__all__ = ["InterruptBetweenBatches"]


class InterruptBetweenBatches(Callback):
    """Defers the first Ctrl-C to the end of the current training batch; the second one interrupts at once.

    In the middle of a batch the optimizer may have taken a step that the loop hasn't counted yet, so a run resumed from
    a checkpoint saved then would repeat that step; in the middle of validation its metrics would be lost. Multi-process
    runs are interrupted immediately, because the processes can't agree on a batch.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: Any = None

    def _ask(self, signal_number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, self._previous)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._asked = False
        in_main_thread = threading.current_thread() is threading.main_thread()
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # a job in the background
        if trainer.world_size == 1 and in_main_thread and not ignored:
            self._previous = signal.signal(signal.SIGINT, self._ask)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._asked:
            raise KeyboardInterrupt

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._give_back()

    def _give_back(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
