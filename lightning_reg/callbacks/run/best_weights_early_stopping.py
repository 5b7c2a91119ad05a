"""Early stopping that hands back the best weights."""

from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_reg.attach.snapshot import (
    WeightSnapshot,
    averaging_callbacks,
    load_weights,
    warn_of_untrusted,
    weights_of_checkpoint,
)
from lightning_reg.attach.stopping import StoppingRules
from lightning_reg.attach.technique import callbacks_of
from lightning_reg.settings import SettingError

__all__ = ["BestWeightsEarlyStopping"]


class BestWeightsEarlyStopping(StoppingRules):
    """Stops when a validation metric no longer improves, and restores the weights that were best at it.

    What it does: everything that Lightning's ``EarlyStopping`` does, with the same arguments, messages and logs. On
    top it keeps the best weights of a fit in the host's memory and puts them back when training ends, stopped early or
    not, so that the model in hand is the best one and not the one that was ``patience`` epochs too old. Every
    validation counts, also one after which nothing is checked. When an exception or Ctrl-C ends the fit, the last
    weights stay, for a checkpoint to go on from.

    When to use: nearly always; it is the cheapest regularizer there is. When not: with so little validation data that
    the metric is mostly noise; the best epoch is then the luckiest one.

    Cost: one copy of the model's state in the host's memory, refreshed when the metric improves. Nothing in
    checkpoints but epoch, step and score; after a resume without further improvement the best weights come from a
    checkpoint that a ``ModelCheckpoint`` with the same monitor kept of that very step.

    Interacts with: callbacks that average weights (Lightning's ``WeightAveraging``, ours), before or after it in the
    list: what is kept and restored is the average that was measured. Lightning's ``StochasticWeightAveraging`` makes
    its average at the very end and never measures it: the best weights replace it. FSDP and DeepSpeed, which flatten
    parameters, can't be restored.

    Deviates from ``EarlyStopping``: ``patience`` of the configuration wins over that of the checkpoint on resume; a
    decision to stop that ``min_epochs`` or ``min_steps`` defer is taken back if the metric improves until then; with
    ``limit_val_batches=0`` a metric that isn't logged is no error but a warning.

    Args:
        monitor: Metric that the module logs; the best weights are those that were best at it.
        min_delta: Smallest change of it that counts as an improvement for stopping; the best weights are those of the
            best value whatever the change.
        patience: Checks without improvement after which training stops.
        verbose: Whether to say when the metric improves.
        mode: ``"min"`` if lower is better, ``"max"`` if higher is.
        strict: Whether a metric that isn't logged is an error.
        check_finite: Whether a NaN or an infinity stops training.
        stopping_threshold: Value that is good enough to stop at.
        divergence_threshold: Value that is bad enough to stop at.
        check_on_train_epoch_end: Whether to check at the end of the training epoch rather than of validation;
            where None, what Lightning decides.
        log_rank_zero_only: Whether only rank 0 reports.
        restore_best_weights: Whether the best weights are put back at the end; else it is plain early stopping.
        start_from_epoch: Epochs, counted from 0, before which nothing is checked and no weights count as best.
        baseline: Value to beat: an improvement that stays behind it resets no patience.
        also: Further metrics that are watched, by name, with the mode of each; any improvement of theirs counts.
        stalled: Whether training stops when ``"all"`` of the metrics have stopped improving for ``patience`` checks or
            when ``"any"`` of them has.

    Raises:
        SettingError: If a setting is out of its range, or the strategy flattens parameters.
        MonitorError: If a metric was never logged; the message lists those that were.

    Reference:
        Lutz Prechelt: Early Stopping — But When?, in: Neural Networks: Tricks of the Trade, 1998.

    >>> BestWeightsEarlyStopping("val/loss", patience=10, also={"val/accuracy": "max"}).stalled
    'all'
    """

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
        *,
        restore_best_weights: bool = True,
        start_from_epoch: int = 0,
        baseline: float | None = None,
        also: Mapping[str, Literal["min", "max"]] | None = None,
        stalled: Literal["all", "any"] = "all",
    ) -> None:
        super().__init__(
            monitor=monitor,
            min_delta=min_delta,
            patience=patience,
            verbose=verbose,
            mode=mode,
            strict=strict,
            check_finite=check_finite,
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
            check_on_train_epoch_end=check_on_train_epoch_end,
            log_rank_zero_only=log_rank_zero_only,
            start_from_epoch=start_from_epoch,
            baseline=baseline,
            also=also,
            stalled=stalled,
        )
        self.restore_best_weights = restore_best_weights
        self.best_epoch: int | None = None
        self._best_step: int | None = None
        # Lightning's best_score follows min_delta and stands still when a threshold ends the run: not the best value.
        self._best_value: Tensor | None = None
        self._snapshot = WeightSnapshot()
        self._has_looked = False  # at a checkpoint of the run

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":  # before a checkpoint's state is loaded; each fit has a best epoch of its own
            self.best_epoch = self._best_step = self._best_value = None
            self._snapshot.forget()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.restore_best_weights:
            return
        callbacks = callbacks_of(trainer)
        if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy)):
            raise SettingError(
                f"strategy must keep parameters apart with {type(self).__name__}, but is "
                f"{type(trainer.strategy).__name__}; use DDPStrategy, or set restore_best_weights to False"
            )
        if any(isinstance(each, StochasticWeightAveraging) for each in callbacks):
            rank_zero_warn(
                "StochasticWeightAveraging makes its average at the end and never measures it: the weights that were "
                f"best at {self.monitor} will replace it; to keep it, set restore_best_weights to False"
            )
        averaging = averaging_callbacks(trainer)
        if averaging and callbacks.index(self) < callbacks.index(averaging[-1]):
            # Behind those which give the model their average when training ends, and so before checkpoints that are
            # saved then. A new list: Lightning is going through the old one at this moment.
            others = [each for each in callbacks if each is not self]
            others.insert(others.index(averaging[-1]) + 1, self)
            trainer.callbacks = others  # type: ignore[attr-defined]  # set outside the class
        if self._best_step is not None and self._best_step == trainer.global_step:
            self._snapshot.take(trainer, pl_module)  # resumed from the very best

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Those of the epoch before were saved after all callbacks had been asked.
        self._has_looked = self._has_looked or not self.restore_best_weights or warn_of_untrusted(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "best_epoch": self.best_epoch,
            "best_step": self._best_step,
            "best_value": self._best_value,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.best_epoch = state_dict.get("best_epoch")
        self._best_step = state_dict.get("best_step")
        self._best_value = state_dict.get("best_value")

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep_the_best(trainer, pl_module)
        super().on_validation_end(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # What validation logged was looked at then, and no equal value counts as better now.
        self._keep_the_best(trainer, pl_module)
        super().on_train_epoch_end(trainer, pl_module)

    def _keep_the_best(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_too_early = trainer.current_epoch < self.start_from_epoch
        if self._should_skip_check(trainer) or is_too_early or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        logged = trainer.callback_metrics.get(self.monitor)
        # Without sync_dist every rank has a value of its own; they have to agree on what to restore.
        value = trainer.strategy.broadcast(None if logged is None else logged.detach().squeeze().cpu())
        if value is None or not value.isfinite():
            return
        if self._best_value is None or self.monitor_op(value, self._best_value):
            self._best_value = value
            self.best_epoch, self._best_step = trainer.current_epoch, trainer.global_step
            if self.restore_best_weights:
                self._snapshot.take(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if not self.restore_best_weights or self.best_epoch is None:
            return
        if self._snapshot:
            self._snapshot.put_back(trainer, pl_module)
        else:
            weights = weights_of_checkpoint(
                trainer, monitor=self.monitor, mode=self.mode, epoch=self.best_epoch, step=self._best_step
            )
            if weights is None:
                rank_zero_warn(
                    f"{self.monitor} was best in epoch {self.best_epoch}, before this run was resumed, and no best "
                    "checkpoint of that epoch was found to take the weights from; the last weights stay"
                )
                return
            load_weights(trainer, pl_module, weights)
        rank_zero_info(f"Restored the weights of epoch {self.best_epoch} ({self.monitor} = {self._best_value:.4f})")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._snapshot.forget()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._snapshot.forget()
