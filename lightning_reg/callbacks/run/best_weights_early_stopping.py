"""Early stopping that restores the best weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.run.stopping import Decision, decide
from lightning_reg.callbacks.run.stopping_session import StoppingSession
from lightning_reg.core.facts import Place, Position
from lightning_reg.core.hooks import without_records
from lightning_reg.core.lightning import (
    is_logged_now,
    package_of,
    twin,
    validation_interval,
)
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.settings import MonitorError, SettingError, check_choice, check_count, check_range

__all__ = ["BestWeightsEarlyStopping", "RestoresBestWeights"]

# What a mixin for Lightning's own class, of either package, is written against.
if TYPE_CHECKING:
    _EarlyStopping = EarlyStopping
else:
    _EarlyStopping = object


class RestoresBestWeights(Technique, _EarlyStopping):
    """What :class:`BestWeightsEarlyStopping` adds to the ``EarlyStopping`` of either package.

    Lightning recognizes early stopping by its own class, so this mixin precedes that class, whose methods ``_stock``
    gives.
    """

    place = Place.RUN
    position = Position.RESTORING

    # Attributes that Lightning's class sets without annotations.
    patience: int
    wait_count: int
    stopped_epoch: int
    best_score: Tensor
    stopping_reason: Any
    stopping_reason_message: str | None

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
        smoothing: float = 0.0,
    ) -> None:
        Technique.__init__(self)
        if not isinstance(monitor, str) or not monitor:
            raise SettingError(f"monitor must be the name of a metric, but is {monitor!r}")
        check_range("min_delta", min_delta, low=0)
        if not isinstance(patience, (int, float)) or not patience >= 0:  # infinity included, as Lightning takes it
            raise SettingError(f"patience must be at least 0, but is {patience!r}")
        thresholds = {"stopping_threshold": stopping_threshold, "divergence_threshold": divergence_threshold}
        for threshold, value in thresholds.items():
            if value is not None:
                check_range(threshold, value, infinite=True)
        check_count("start_from_epoch", start_from_epoch, low=0)
        if baseline is not None:
            check_range("baseline", baseline)
        check_choice("stalled", stalled, ["all", "any"])
        check_range("smoothing", smoothing, low=0, high=1, high_open=True)
        if also is not None and not isinstance(also, Mapping):
            raise SettingError(f"also must have the mode of each metric by its name, but is {also!r}")
        for name, direction in (also or {}).items():
            check_choice(f"also[{name!r}]", direction, ["min", "max"])
            if name == monitor:
                raise SettingError(f"also must name metrics beside the monitor, but has {name!r} again")
        self._stock.__init__(
            monitor,
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
        self.start_from_epoch = start_from_epoch
        self.baseline = baseline
        self.also = dict(also or {})
        self.stalled = stalled
        self.smoothing = smoothing

    @property
    def _stock(self) -> Any:
        """Lightning's own methods, which come after ours."""
        # Those of the other package come after lightning's Callback, too, whose hooks do nothing.
        return super(Technique if isinstance(self, EarlyStopping) else Callback, self)

    @property
    @override
    def state_key(self) -> str:
        key: str = self._stock.state_key
        return key

    @property
    @override
    def acts_on_steps(self) -> bool:
        return False

    @property
    @override
    def session(self) -> StoppingSession | None:
        return cast(StoppingSession | None, super().session)

    @property
    def best_epoch(self) -> int | None:
        """Epoch with the best value of the latest fit; None where there was no value."""
        epoch: int | None = self.last_result
        return epoch

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return StoppingSession(self, run)

    # Lightning's class, with what is new

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        Technique.setup(self, trainer, pl_module, stage)
        if not isinstance(self, twin(EarlyStopping, package_of(trainer))):
            home = "callbacks" if package_of(trainer) == "lightning" else "pytorch_lightning"
            raise SettingError(
                f"callbacks must have a BestWeightsEarlyStopping of {package_of(trainer)}, whose Trainer this is: "
                f"import it from lightning_reg.{home}"
            )
        if self._check_on_train_epoch_end is None and validation_interval(trainer) is None:
            self._check_on_train_epoch_end = False  # Lightning's own setup can't tell
        self._stock.setup(trainer, pl_module, stage)
        if stage == "fit":  # before a checkpoint's state is loaded; each fit starts over
            self.wait_count = self.stopped_epoch = 0
            self.stopping_reason, self.stopping_reason_message = type(self.stopping_reason).NOT_STOPPED, None
            self.best_score = self.best_score.new_tensor(float("-inf" if self.mode == "max" else "inf"))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**self._stock.state_dict(), **self.saved_state()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience  # that of the configuration
        self._stock.load_state_dict(state_dict)
        self.patience = patience
        own = set(self._stock.state_dict())
        self.load_saved_state({name: value for name, value in state_dict.items() if name not in own})

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Technique.on_validation_end(self, trainer, pl_module)
        if self.session is None or not self.session.comes_last:
            self.keep_the_best(trainer, is_checked=not self.checks_at_epoch_end)
        self._stock.on_validation_end(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Technique.on_train_epoch_end(self, trainer, pl_module)
        # Values that validation logged were checked then; equal values don't count as better now.
        self.keep_the_best(trainer, is_checked=self.checks_at_epoch_end)
        self._stock.on_train_epoch_end(trainer, pl_module)

    @property
    def checks_at_epoch_end(self) -> bool:
        """Whether stopping is decided at the end of the training epoch rather than of validation."""
        return bool(self._check_on_train_epoch_end)

    def keep_the_best(self, trainer: Trainer, *, is_checked: bool) -> None:
        """Keeps the weights that were measured if they are the best so far.

        Args:
            is_checked: Whether stopping is decided at this point.
        """
        is_too_early = trainer.current_epoch < self.start_from_epoch
        session = self.session
        if session is None or self._should_skip_check(trainer) or is_too_early or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        logged = trainer.callback_metrics.get(self.monitor)
        # Without sync_dist every rank has a value of its own; they have to agree on what to restore.
        value = trainer.strategy.broadcast(None if logged is None else without_records(logged.detach().squeeze().cpu()))
        if value is None or not value.isfinite():
            return
        if not self.smoothing:
            session.keep_if_best(value)
        elif is_checked or is_logged_now(trainer, self.monitor):  # else it is the value from before
            session.keep_if_best(session.smoothed(value))

    @override
    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        session, logged = self.session, trainer.callback_metrics
        if session is None:  # called by hand, outside of a fit
            self._stock._run_early_stopping_check(trainer)
            return
        if trainer.current_epoch < self.start_from_epoch or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.monitor not in logged and trainer.limit_val_batches == 0:
            session.say_that_nothing_stops()
            return
        try:
            is_logged = self._validate_condition_metric(logged)
        except RuntimeError as error:
            raise MonitorError(str(error)) from error
        if not is_logged:
            return
        session.progress_of(logged)
        current = without_records(logged[self.monitor].squeeze())  # it goes into checkpoints
        if self.smoothing:
            agreed = trainer.strategy.broadcast(current.detach().cpu())
            current = session.smoothed(agreed).to(current) if agreed.isfinite() else current
        stops, reason = self._evaluate_stopping_criteria(current)
        stops = trainer.strategy.reduce_boolean_decision(stops, all=False)  # all processes stop if any does
        session.apply(stops)
        if stops:
            self.stopped_epoch, self.stopping_reason_message = trainer.current_epoch, reason
        if reason and self.verbose:
            self._log_info(trainer, reason, self.log_rank_zero_only)

    @override
    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        waited, reasons = self.wait_count, type(self.stopping_reason)
        stops, reason = self._stock._evaluate_stopping_criteria(current)
        if stops and self.stopping_reason != reasons.PATIENCE_EXHAUSTED:
            return stops, reason
        improved = self.wait_count == 0
        if improved and self.baseline is not None and not self.monitor_op(current - self.min_delta, self.baseline):
            self.wait_count = waited + 1
            stops = self.wait_count >= self.patience
            if stops:
                reason = (
                    f"Monitored metric {self.monitor} did not beat the baseline {self.baseline} in the last "
                    f"{self.wait_count} records. Best score: {self.best_score:.3f}. Signaling Trainer to stop."
                )
        decision = Decision(stops, reason)
        if self.also and self.session is not None:
            others = self.session.progress
            decision = decide(
                self.monitor, decision, self.wait_count, others, patience=self.patience, stalled=self.stalled
            )
        self.stopping_reason = reasons.PATIENCE_EXHAUSTED if decision.stops else reasons.NOT_STOPPED
        return decision.stops, decision.reason


class BestWeightsEarlyStopping(RestoresBestWeights, EarlyStopping):
    """Stops when a validation metric no longer improves, and restores the weights that were best at it.

    What it does: everything that Lightning's ``EarlyStopping`` does, with the same arguments, messages and logs. On top
    it keeps the best weights of a fit in the host's memory and puts them back when training ends, stopped early or not,
    so that the final model is the best one and not the one from ``patience`` epochs later. Every validation counts,
    also one after which nothing is checked. When an exception or Ctrl-C ends the fit, the last weights stay, for a
    checkpoint to go on from.

    When to use: nearly always; it is the cheapest regularizer there is. When not: with so little validation data that
    the metric is mostly noise; the best epoch is then the luckiest one, unless ``smoothing`` averages luck away.

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
        min_delta: Smallest change of the monitor that counts as an improvement for stopping; the best weights are those
            of the best value whatever the change.
        patience: Checks without improvement after which training stops, at least 0.
        verbose: Whether to report improvements of the metric.
        mode: ``"min"`` if lower is better, ``"max"`` if higher is.
        strict: Whether a metric that isn't logged is an error.
        check_finite: Whether a NaN or an infinity stops training.
        stopping_threshold: Value of the monitor that is good enough to stop at; none where None.
        divergence_threshold: Value of the monitor that is bad enough to stop at; none where None.
        check_on_train_epoch_end: Whether to check at the end of the training epoch rather than of validation;
            where None, what Lightning decides.
        log_rank_zero_only: Whether only rank 0 reports.
        restore_best_weights: Whether the best weights are put back at the end; else it is plain early stopping.
        start_from_epoch: Epochs, counted from 0, before which nothing is checked and no weights count as best.
        baseline: Value to beat: an improvement that stays behind it resets no patience; none where None.
        also: Further metrics to watch: the mode of each, by name. Their improvements count however small, whatever
            ``min_delta`` is.
        smoothing: β, in [0, 1): the monitor's exponential moving average m ← βm + (1 − β)v, divided by 1 − βᵗ, takes
            its place, for stopping, thresholds, baseline and for which weights are best; 0.5 to 0.8 where the metric
            is noisy, 0 for none. Values before ``start_from_epoch`` are left out.
        stalled: Whether training stops when ``"all"`` of the metrics have stopped improving for ``patience`` checks or
            when ``"any"`` of them has.

    Logs:
        The monitor's name with ``_smoothed``, where there is smoothing.

    Raises:
        SettingError: If a setting is out of its range, or the strategy flattens parameters.
        MonitorError: If a metric was never logged; the message lists those that were.

    Reference:
        Lutz Prechelt: Early Stopping — But When?, in: Neural Networks: Tricks of the Trade, 1998.

    >>> BestWeightsEarlyStopping("val/loss", patience=10, also={"val/accuracy": "max"}).stalled
    'all'
    """
