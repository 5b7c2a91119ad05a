"""Early stopping that restores the best weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
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
from lightning_reg.callbacks.run.stopping import Decision, Progress, decide
from lightning_reg.core.facts import Place, Position
from lightning_reg.core.lightning import (
    callbacks_of,
    flattens_parameters,
    is_logged_now,
    log_metrics,
    package_of,
    twin,
    twins,
)
from lightning_reg.core.metric_names import higher_is_better
from lightning_reg.core.schedules import warn_if_never
from lightning_reg.core.session import Session, kept
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.functional.measures.learning_curves import smoothed
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
    def session(self) -> "StoppingSession | None":
        return cast("StoppingSession | None", super().session)

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
        value = trainer.strategy.broadcast(None if logged is None else logged.detach().squeeze().cpu())
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
        current = logged[self.monitor].squeeze()
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


@dataclass(eq=False)
class StoppingSession(Session[RestoresBestWeights]):
    """One fit: the best value, a copy of its weights, and the progress of further metrics."""

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
