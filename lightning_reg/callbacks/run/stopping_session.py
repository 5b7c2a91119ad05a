"""One fit of early stopping: the best value and the weights of then, and when to stop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.run.snapshot import (
    WeightSnapshot,
    averaging_callbacks,
    fits,
    load_weights,
    warn_of_untrusted,
    weights_of_checkpoint,
)
from lightning_reg.callbacks.run.stopping import Progress
from lightning_reg.core.lightning import callbacks_of, flattens_parameters, log_metrics, twins
from lightning_reg.core.metric_names import higher_is_better
from lightning_reg.core.schedules import warn_if_never
from lightning_reg.core.session import Session, kept
from lightning_reg.core.technique import Technique
from lightning_reg.functional.measures.learning_curves import smoothed
from lightning_reg.settings import MonitorError, SettingError

if TYPE_CHECKING:
    from lightning_reg.callbacks.run.best_weights_early_stopping import RestoresBestWeights

__all__ = ["StoppingSession"]


@dataclass(eq=False)
class StoppingSession(Session[Any]):
    """One fit: the best value, a copy of its weights, and the progress of further metrics."""

    technique: "RestoresBestWeights"
    best_epoch: int | None = kept(default=None)
    best_step: int | None = kept(default=None)
    # Lightning's best_score follows min_delta and stands still when a threshold ends the run: not the best value.
    best_value: Tensor | None = kept(default=None)
    bests: dict[str, Tensor] = kept(default_factory=dict)  # of the further metrics
    waits: dict[str, int] = kept(default_factory=dict)
    average: float = kept(default=0.0)  # of the monitor, where it is smoothed
    count: int = kept(default=0)  # how many values are in it
    latest: tuple[int, float, float] = kept(default=(-1, 0.0, 0.0))  # step, value, smoothed value
    snapshot: WeightSnapshot = field(default_factory=WeightSnapshot)
    has_asked: bool = False  # to stop, before that was possible
    has_said: bool = False  # that nothing is validated
    has_looked: bool = False  # at a checkpoint of the run
    restored: dict[str, Any] = field(default_factory=dict)  # the state that was put back
    comes_last: bool = field(init=False)  # whether others average weights

    def __post_init__(self) -> None:
        technique = self.technique
        for name, mode in {technique.monitor: technique.mode, **technique.also}.items():
            if mode == "min" and higher_is_better(name):
                rank_zero_warn(
                    f"BestWeightsEarlyStopping keeps the weights with the lowest {name}, which by its name is better "
                    "where it is higher: set mode='max'"
                )
        # Callbacks that aren't ours swap weights in their own hooks, perhaps after this one; the strategy's hooks come
        # after those of all callbacks.
        self.comes_last = any(
            not isinstance(averaging_callback, Technique)
            for averaging_callback in averaging_callbacks(self.run.trainer)
        )
        if self.comes_last:
            self.run.around(self.run.trainer.strategy, "on_validation_end", self._keep_late)
            self.run.around(self.run.trainer.strategy, "on_train_end", self._restore_again)

    @override
    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        for own in (self.bests, self.waits):  # those of the configuration, as with patience
            for name in set(own) - set(self.technique.also):
                del own[name]

    @override
    def result(self) -> int | None:
        return self.best_epoch

    @override
    def train_starts(self) -> None:
        technique, trainer = self.technique, self.run.trainer
        warn_if_never(technique, trainer, "epoch", technique.start_from_epoch + 1, "start_from_epoch")
        if not technique.restore_best_weights:
            return
        if flattens_parameters(trainer):
            raise SettingError(
                f"strategy must keep parameters apart with {type(technique).__name__}, but is "
                f"{type(trainer.strategy).__name__}; use DDPStrategy, or set restore_best_weights to False"
            )
        if any(isinstance(callback, twins(StochasticWeightAveraging)) for callback in callbacks_of(trainer)):
            rank_zero_warn(
                "StochasticWeightAveraging makes its average at the end and never measures it: the weights that were "
                f"best at {technique.monitor} will replace it; to keep it, set restore_best_weights to False"
            )
        if self.best_step is not None and self.best_step == trainer.global_step:
            self.snapshot.take(trainer, self.run.module)  # resumed from the very best

    @override
    def batch_starts(self, batch_idx: int) -> None:
        # Checkpoints of the epoch before were saved after all callbacks had been asked.
        if batch_idx == 0 and self.technique.restore_best_weights and not self.has_looked:
            self.has_looked = warn_of_untrusted(self.run.trainer)

    def keep_if_best(self, value: Tensor) -> None:
        """Keeps a copy of the weights if a value is better than all before."""
        technique, trainer = self.technique, self.run.trainer
        if self.best_value is None or technique.monitor_op(value, self.best_value):
            self.best_value = value
            self.best_epoch, self.best_step = trainer.current_epoch, trainer.global_step
            if technique.restore_best_weights:
                self.snapshot.take(trainer, self.run.module)

    def smoothed(self, value: Tensor) -> Tensor:
        """Updates the monitor's moving average, once for the same step and value, and returns the average.

        Args:
            value: Finite value, the same in all processes.
        """
        technique, trainer = self.technique, self.run.trainer
        step, seen, result = self.latest
        if (step, seen) != (trainer.global_step, float(value)):
            self.count += 1
            self.average, result = smoothed(self.average, float(value), self.count, technique.smoothing)
            self.latest = trainer.global_step, float(value), result
            name = f"{technique.monitor}_smoothed"
            log_metrics(trainer, {name: torch.tensor(result)}, {name})
        return value.new_tensor(result)

    # Stopping

    @property
    def progress(self) -> dict[str, Progress]:
        """Progress of the further metrics, by name."""
        return {name: Progress(self.bests.get(name), self.waits.get(name, 0)) for name in self.technique.also}

    def progress_of(self, logged: Mapping[str, Tensor]) -> None:
        """Updates the progress of the further metrics with another check."""
        for name, mode in self.technique.also.items():
            value = logged.get(name)
            if value is not None:
                after = self.progress[name].after(value.detach().squeeze().cpu(), mode)
                self.waits[name] = after.waits
                if after.best is not None:
                    self.bests[name] = after.best
            elif self.technique.strict:
                raise MonitorError(
                    f"also must name metrics that are logged, but {name!r} isn't; there are {', '.join(logged)}"
                )

    def apply(self, stops: bool) -> None:
        """Asks the trainer to stop, or withdraws a request that was deferred until ``min_epochs``."""
        technique, trainer = self.technique, self.run.trainer
        had_to_stop = trainer.should_stop
        trainer.should_stop = had_to_stop or stops
        if self.has_asked and not stops:
            others: list[Any] = [
                callback for callback in callbacks_of(trainer) if isinstance(callback, twins(EarlyStopping))
            ]
            # Unless another callback of the kind would stop, too.
            if not any(other.wait_count >= other.patience for other in others if other is not technique):
                trainer.should_stop = False
            technique.stopped_epoch, technique.stopping_reason_message = 0, None
            technique.stopping_reason = type(technique.stopping_reason).NOT_STOPPED  # of its own package
        self.has_asked = stops and (self.has_asked or not had_to_stop)

    def say_that_nothing_stops(self) -> None:
        """Warns once that nothing stops training early."""
        if not self.has_said:
            rank_zero_warn(
                f"{self.technique.monitor} isn't logged, and limit_val_batches is 0: nothing stops training early"
            )
        self.has_said = True

    # When training has ended, after averages have been put into the module

    @override
    def train_ends(self) -> None:
        technique, trainer, module = self.technique, self.run.trainer, self.run.module
        if not technique.restore_best_weights or self.best_epoch is None:
            return
        weights = self.snapshot.state or weights_of_checkpoint(
            trainer, monitor=technique.monitor, mode=technique.mode, epoch=self.best_epoch, step=self.best_step
        )
        if weights is None:
            rank_zero_warn(
                f"{technique.monitor} was best in epoch {self.best_epoch}, before this run was resumed, and no "
                "best checkpoint of that epoch was found to take the weights from; the last weights stay"
            )
            return
        if not fits(module, weights):
            rank_zero_warn(
                f"{technique.monitor} was best in epoch {self.best_epoch}, but the module has had other layers since, "
                "which its weights of then don't fit; the last weights stay"
            )
            return
        self.restored = weights
        load_weights(trainer, module, self.restored)
        rank_zero_info(f"Restored the weights of epoch {self.best_epoch} ({technique.monitor} = {self.best_value:.4f})")

    def _keep_late(self, on_validation_end: Callable[[], Any]) -> Any:
        self.technique.keep_the_best(self.run.trainer, is_checked=not self.technique.checks_at_epoch_end)
        return on_validation_end()

    def _restore_again(self, on_train_end: Callable[[], Any]) -> Any:
        if self.restored:
            load_weights(self.run.trainer, self.run.module, self.restored)
        return on_train_end()
