"""Early stopping that hands back the best weights."""

import copy
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_reg.settings import MonitorError, SettingError

__all__ = ["BestWeightsEarlyStopping"]


class BestWeightsEarlyStopping(EarlyStopping):
    """Stops when a validation metric no longer improves, and restores the weights of its best epoch.

    What it does: everything that Lightning's ``EarlyStopping`` does, with the same arguments, messages and logs. On
    top it keeps the best weights of a fit in the host's memory and puts them back when training ends, stopped early or
    not, so that the model in hand is the best one and not the one that was ``patience`` epochs too old. When an
    exception or Ctrl-C ends it the last weights stay, for a checkpoint to go on from.

    When to use: nearly always; it is the cheapest regularizer there is. When not: with so little validation data that
    the metric is mostly noise; the best epoch is then the luckiest one.

    Cost: one copy of the model's state in the host's memory, refreshed when the metric improves. Nothing in
    checkpoints but the epoch and the score; after a resume without further improvement the best weights come from the
    best checkpoint of a ``ModelCheckpoint`` that monitors the same metric, if it holds that very epoch.

    Deviates from ``EarlyStopping``: ``patience`` of the configuration wins over that of the checkpoint on resume.

    Args:
        monitor: Metric that the module logs.
        min_delta: Smallest change that counts as an improvement for stopping; the best weights are those of the best
            value whatever the change.
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

    Reference:
        Lutz Prechelt: Early Stopping — But When?, in: Neural Networks: Tricks of the Trade, 1998.

    >>> BestWeightsEarlyStopping("val/loss", patience=10).restore_best_weights
    True
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
    ) -> None:
        if not patience >= 0:  # any number, infinity included, as Lightning takes it
            raise SettingError(f"patience must be at least 0, but is {patience}")
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
        )
        self.restore_best_weights = restore_best_weights
        self.best_epoch: int | None = None
        # Lightning's best_score follows min_delta and stands still when a threshold ends the run: not the best value.
        self._best_value: Tensor | None = None
        self._best_weights: dict[str, Any] | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":  # before a checkpoint's state is loaded; each fit has a best epoch of its own
            self.best_epoch = self._best_value = self._best_weights = None

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best_epoch": self.best_epoch, "best_value": self._best_value}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience
        super().load_state_dict(state_dict)
        self.patience = patience
        self.best_epoch = state_dict.get("best_epoch")
        self._best_value = state_dict.get("best_value")

    @override
    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        try:
            super()._run_early_stopping_check(trainer)
        except RuntimeError as error:
            if "is not available" in str(error):
                raise MonitorError(str(error)) from error
            raise
        value = trainer.callback_metrics.get(self.monitor)
        if value is None or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set outside the class
            return
        # Without sync_dist every rank has a value of its own; they have to agree on the epoch to restore.
        value = trainer.strategy.broadcast(value.detach().squeeze().cpu())
        improved = not value.isnan() and (self._best_value is None or self.monitor_op(value, self._best_value))
        if improved:
            self._best_value = value
            self.best_epoch = trainer.current_epoch
            if self.restore_best_weights:
                self._best_weights = {
                    name: entry.detach().to("cpu", copy=True) if isinstance(entry, Tensor) else copy.deepcopy(entry)
                    for name, entry in trainer.lightning_module.state_dict().items()
                }

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if not self.restore_best_weights or self.best_epoch is None:
            return
        weights = self._best_weights or self._weights_of_best_checkpoint(trainer)
        if weights is None:
            rank_zero_warn(
                f"{self.monitor} was best in epoch {self.best_epoch}, before this run was resumed, and no best "
                "checkpoint of that epoch was found to take the weights from; the last weights stay"
            )
            return
        pl_module.load_state_dict(weights, strict=pl_module.strict_loading)
        self._best_weights = None
        rank_zero_info(f"Restored the weights of epoch {self.best_epoch} ({self.monitor} = {self._best_value:.4f})")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._best_weights = None

    def _weights_of_best_checkpoint(self, trainer: Trainer) -> dict[str, Any] | None:
        for callback in trainer.checkpoint_callbacks:
            if (
                isinstance(callback, ModelCheckpoint)
                and (callback.monitor, callback.mode) == (self.monitor, self.mode)
                and Path(callback.best_model_path).is_file()
            ):
                checkpoint = trainer.strategy.load_checkpoint(Path(callback.best_model_path), weights_only=False)
                if checkpoint["epoch"] == self.best_epoch:
                    weights: dict[str, Any] = checkpoint["state_dict"]
                    return weights
        return None
