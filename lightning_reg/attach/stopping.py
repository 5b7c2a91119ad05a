"""When a fit has to stop: Lightning's rules and some more."""

from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_reg.attach.technique import callbacks_of
from lightning_reg.settings import MonitorError, SettingError, check_choice, check_count, check_range

__all__ = ["StoppingRules"]

_SIGNAL = "Signaling Trainer to stop."


class StoppingRules(EarlyStopping):
    """Lightning's EarlyStopping with a start, a baseline, further metrics and decisions that can be taken back.

    Args:
        monitor: Metric that the module logs.
        patience: Checks without improvement after which training stops.
        start_from_epoch: Epochs, counted from 0, before which nothing is checked.
        baseline: Value to beat: an improvement that stays behind it resets no patience.
        also: Further metrics, with the mode of each; any improvement of theirs counts.
        stalled: Whether training stops when ``"all"`` of the metrics have stalled or ``"any"`` of them.
        settings: Lightning's others.

    Raises:
        SettingError: If a setting is out of its range.
        MonitorError: If a metric was never logged; the message lists those that were.
    """

    def __init__(
        self,
        monitor: str,
        *,
        patience: int,
        start_from_epoch: int,
        baseline: float | None,
        also: Mapping[str, Literal["min", "max"]] | None,
        stalled: Literal["all", "any"],
        **settings: Any,
    ) -> None:
        if not patience >= 0:  # any number, infinity included, as Lightning takes it
            raise SettingError(f"patience must be at least 0, but is {patience}")
        check_count("start_from_epoch", start_from_epoch, low=0)
        if baseline is not None:
            check_range("baseline", baseline)
        check_choice("stalled", stalled, ["all", "any"])
        for name, each in (also or {}).items():
            check_choice(f"also[{name!r}]", each, ["min", "max"])
            if name == monitor:
                raise SettingError(f"also must name metrics beside the monitor, but has {name!r} again")
        super().__init__(monitor, patience=patience, **settings)
        self.start_from_epoch = start_from_epoch
        self.baseline = baseline
        self.also = dict(also or {})
        self.stalled = stalled
        self._bests: dict[str, Tensor] = {}  # of the further metrics
        self._waits = dict.fromkeys(self.also, 0)
        self._logged: Mapping[str, Tensor] = {}
        self._has_asked = False  # to stop, before that was possible
        self._is_told = False  # that nothing is validated

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._has_asked = self._is_told = False

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "bests": dict(self._bests), "waits": dict(self._waits)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience
        super().load_state_dict(state_dict)
        self.patience = patience
        for name in self.also:  # those of the configuration, as with patience
            if name in state_dict.get("bests", {}):
                self._bests[name] = state_dict["bests"][name]
                self._waits[name] = state_dict["waits"][name]

    @override
    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        if trainer.current_epoch < self.start_from_epoch:
            return
        self._logged = trainer.callback_metrics
        if self.monitor not in self._logged and trainer.limit_val_batches == 0:
            if not self._is_told:
                rank_zero_warn(f"{self.monitor} isn't logged, and limit_val_batches is 0: nothing stops training early")
            self._is_told = True
            return
        had_to_stop = trainer.should_stop
        trainer.should_stop = False  # to see what is decided here, by all processes
        decided = False
        try:
            super()._run_early_stopping_check(trainer)
            decided = trainer.should_stop
        except RuntimeError as error:
            if "is not available" in str(error):
                raise MonitorError(str(error)) from error
            raise
        finally:
            trainer.should_stop = decided or had_to_stop
        if self._has_asked and not decided and self.monitor in self._logged:
            self._take_back(trainer)
        self._has_asked = decided and (self._has_asked or not had_to_stop)

    def _take_back(self, trainer: Trainer) -> None:
        """Takes back a decision to stop that had to wait, unless another callback of the kind would stop, too."""
        others = [each for each in callbacks_of(trainer) if isinstance(each, EarlyStopping) and each is not self]
        if not any(each.wait_count >= each.patience for each in others):
            trainer.should_stop = False
        self.stopped_epoch = 0
        self.stopping_reason, self.stopping_reason_message = EarlyStoppingReason.NOT_STOPPED, None

    @override
    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        waited = self.wait_count
        should_stop, reason = super()._evaluate_stopping_criteria(current)
        if should_stop and self.stopping_reason != EarlyStoppingReason.PATIENCE_EXHAUSTED:
            return should_stop, reason
        improved = self.wait_count == 0
        if improved and self.baseline is not None and not self.monitor_op(current - self.min_delta, self.baseline):
            self.wait_count = waited + 1
            should_stop = self.wait_count >= self.patience
            if should_stop:
                reason = (
                    f"Monitored metric {self.monitor} did not beat the baseline {self.baseline} in the last "
                    f"{self.wait_count} records. Best score: {self.best_score:.3f}. Signaling Trainer to stop."
                )
        if self.also:
            should_stop, reason = self._with_others(should_stop, reason)
        self.stopping_reason = (
            EarlyStoppingReason.PATIENCE_EXHAUSTED if should_stop else EarlyStoppingReason.NOT_STOPPED
        )
        return should_stop, reason

    def _with_others(self, should_stop: bool, reason: str | None) -> tuple[bool, str | None]:
        """Returns what the monitor and the further metrics decide together."""
        stalled = [name for name in self.also if self._has_stalled(name)]
        if self.stalled == "all":
            if should_stop and len(stalled) == len(self.also):
                names = ", ".join([self.monitor, *stalled])
                waits = min(self.wait_count, *self._waits.values())
                return True, f"Monitored metrics {names} did not improve in the last {waits} records. {_SIGNAL}"
            return False, None if should_stop else reason
        if stalled and not should_stop:
            name = stalled[0]
            return True, (
                f"Monitored metric {name} did not improve in the last {self._waits[name]} records."
                f" Best score: {self._bests[name]:.3f}. {_SIGNAL}"
            )
        return should_stop, reason

    def _has_stalled(self, name: str) -> bool:
        value = self._logged.get(name)
        if value is None:
            if self.strict:
                raise MonitorError(
                    f"also must name metrics that are logged, but {name!r} isn't; there are {', '.join(self._logged)}"
                )
            return False
        value, best = value.detach().squeeze().cpu(), self._bests.get(name)
        if value.isfinite() and (best is None or self.mode_dict[self.also[name]](value, best)):
            self._bests[name] = value
            self._waits[name] = 0
        else:
            self._waits[name] += 1
        return name in self._bests and self._waits[name] >= max(self.patience, 1)
