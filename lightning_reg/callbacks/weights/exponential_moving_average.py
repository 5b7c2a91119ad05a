"""Weights averaged over training, the latest counting most."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lightning.pytorch import Trainer
from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.weights.averages.average_session import AverageSession
from lightning_reg.callbacks.weights.averages.averaging import Buffers, Validate, WeightAverage
from lightning_reg.core.lightning import planned_epochs
from lightning_reg.core.schedules import warn_if_never
from lightning_reg.core.session import Session, kept
from lightning_reg.core.step import Run
from lightning_reg.functional.weights.averaging import decay_of_half_life, ema_update_, warmed_up_decay
from lightning_reg.settings import SettingError, check_choice, check_count, check_range

__all__ = ["ExponentialMovingAverage"]

Unit = Literal["step", "epoch", "run"]
_USUAL_DECAY = 0.999


class ExponentialMovingAverage(WeightAverage):
    """Averages the weights over training with exponentially falling shares, and evaluates with the average.

    What it does: after a step, average ← decay · average + (1 - decay) · weights; the first time the weights are
    copied. The fit validates with the average, checkpoints hold it as the model's ``state_dict``, and after the fit it
    is in the module, so that ``test``, ``predict`` and ``ckpt_path="best"`` use it, also in a new trainer and without
    this callback. Checkpoints hold the trained weights beside it, and a resumed fit goes on with them. An average that
    never began changes nothing; where an exception ends the fit the trained weights stay.

    When to use: nearly always with a constant or slowly falling learning rate; it takes the noise of the last steps out
    of the weights. When not: at the end of a schedule that falls to 0 little is left to average out; with a half-life
    longer than training, whatever the warm-up.

    Cost: one copy of the trainable weights, in memory and in checkpoints; in 32 bits where weights have 16. An update
    reads weights and average and writes the average. Before and after validation the two are swapped. A second
    validation, and ``buffers="recompute"``, take a copy of the module for as long as they last, and the latter
    remembers inputs as :class:`StochasticWeightAverage` does.

    Interacts with: every other callback, because it averages the weights as the step, its constraints and Lookahead
    leave them. Several can be combined: the first gives the model its weights, the others only report, as
    ``ema_2/val_loss`` for one. Constraints on convex sets (``MaxNorm``, ``NonNegative``) hold for the average, that of
    ``UnitNorm`` doesn't; parametrizations are averaged underneath, and spectral normalization recomputes its singular
    vectors. ``EarlyStopping`` and ``ModelCheckpoint`` see the metrics of the average, but with ``validate="both"``
    those of the trained weights under the module's names. A second validation runs on a copy of the module, so that
    nothing in it counts twice and loggers of the module's own get nothing twice; a module that FSDP2 shards can't be
    copied and runs itself, with a warning. Weights may be given other memory, renamed or replaced in the middle of a
    fit (``weight.data = ...``, pruning, ``load_state_dict``); parameters that the module hasn't registered aren't
    averaged.

    Every step counts, also of several in one batch; but several optimizers that step in one batch count as one step.

    Args:
        decay: Share of the average that is kept at each update, in [0, 1]; 0.999 where ``half_life`` isn't given
            either. With 0 the average is the weights of the last update, with 1 those of the first.
        half_life: Time after which a weight counts half, in ``half_life_unit``, instead of ``decay``; at least 0, with
            which the average is the weights of the last update.
        half_life_unit: Unit of ``half_life``: ``"step"`` for optimizer steps, ``"epoch"``, or ``"run"`` for a share of
            the whole run, where 0.01 to 0.1 is usual. With ``"epoch"`` a batch counts as one step, also where manual
            optimization takes several.
        warmup: Whether the n-th update keeps at most (1 + n) / (10 + n), so that a short training isn't averaged with
            its beginning; on by default, because a decay of 0.999 forgets the beginning only after thousands of steps.
            torch and timm have none. A ``decay`` of 1 has none either.
        start_step: Optimizer steps before the average begins, at least 0.
        start_epoch: Epochs before the average begins, at least 0.
        every_n_steps: Optimizer steps between two updates, at least 1; ``decay`` counts updates, ``half_life`` steps.
            The weights at the end of each period are taken, so that an average with one update per epoch isn't an epoch
            late; before the first there is no average.
        buffers: Running statistics of normalization layers: ``"average"`` like weights, ``"copy"`` as they are, or
            ``"recompute"`` by passing the inputs that the network had in training through the averaged one, before
            each validation, each checkpoint, and at the end (BatchNorm alone). Counters and other buffers are never
            averaged.
        validate: ``"averaged"``: validation reports on the average; ``"both"``: on the trained weights, and once more,
            with a prefix, on the average, which takes a second pass.

    Logs:
        With ``validate="both"`` ``ema/<name>``: what the module logs in validation, measured with averaged weights; of
        several instances ``ema_1/<name>`` and so on.

    Raises:
        SettingError: If a setting is out of its range, ``decay`` and ``half_life`` are both given, epochs have no
            length to measure a half-life by, Lightning averages weights too, or the strategy flattens parameters.

    Reference:
        Boris Polyak, Anatoli Juditsky: Acceleration of Stochastic Approximation by Averaging, SIAM Journal on Control
        and Optimization 30, 1992.

    >>> ExponentialMovingAverage(decay=0.99).decay
    0.99
    """

    prefix = "ema"
    delays = ("start_epoch", "start_step", "every_n_steps")

    def __init__(
        self,
        *,
        decay: float | None = None,
        half_life: float | None = None,
        half_life_unit: Unit = "step",
        warmup: bool = True,
        start_step: int = 0,
        start_epoch: int = 0,
        every_n_steps: int = 1,
        buffers: Buffers = "average",
        validate: Validate = "averaged",
    ) -> None:
        if decay is not None and half_life is not None:
            raise SettingError(f"decay must be left out with half_life {half_life}, but is {decay}")
        if decay is not None:
            check_range("decay", decay, low=0, high=1)
        if half_life is not None:
            check_range("half_life", half_life, low=0)
        check_choice("half_life_unit", half_life_unit, get_args(Unit))
        check_count("start_step", start_step, low=0)
        check_count("start_epoch", start_epoch, low=0)
        check_count("every_n_steps", every_n_steps)
        self.decay = _USUAL_DECAY if decay is None and half_life is None else decay
        self.half_life = half_life
        self.half_life_unit: Unit = half_life_unit
        self.warmup = warmup
        self.start_step = start_step
        self.start_epoch = start_epoch
        self.every_n_steps = every_n_steps
        super().__init__(buffers=buffers, validate=validate)

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return MovingAverageSession(self, run)


@dataclass(eq=False)
class MovingAverageSession(AverageSession):
    """One fit of a moving average."""

    technique: ExponentialMovingAverage
    steps: int = kept(default=0)
    steps_since_start: int = kept(default=0)
    decay: float = field(init=False)

    @override
    def train_starts(self) -> None:
        super().train_starts()
        technique, trainer = self.technique, self.run.trainer
        if technique.start_epoch >= planned_epochs(trainer):
            self.is_told = warn_if_never(technique, trainer, "epoch", technique.start_epoch + 1, "start_epoch")
        else:
            is_known = not math.isinf(trainer.num_training_batches)
            before = technique.start_epoch * _steps_per_epoch(trainer) if is_known else 0
            start = "start_epoch" if before > technique.start_step else "start_step"
            first = max(before, technique.start_step) + technique.every_n_steps
            self.is_told = warn_if_never(technique, trainer, "step", first, start, "every_n_steps")
        if technique.half_life is None:
            self.decay = technique.decay if technique.decay is not None else _USUAL_DECAY
            return
        steps = technique.half_life
        if technique.half_life_unit == "epoch":
            steps *= _steps_per_epoch(self.run.trainer)
        if technique.half_life_unit == "run":
            steps *= _steps_of_run(self.run.trainer)
        self.decay = decay_of_half_life(steps / technique.every_n_steps)

    @property
    @override
    def is_averaging(self) -> bool:
        technique = self.technique
        return self.steps >= technique.start_step and self.run.trainer.current_epoch >= technique.start_epoch

    @property
    @override
    def counts_batches(self) -> bool:
        # Of batches an epoch's number is known; of steps it isn't where a batch has several.
        is_in_epochs = self.technique.half_life is not None and self.technique.half_life_unit == "epoch"
        return is_in_epochs or super().counts_batches

    @override
    def is_due_after_step(self) -> bool:
        starts = self.is_averaging
        self.steps += 1
        if not starts:
            return False
        self.steps_since_start += 1
        return self.steps_since_start % self.technique.every_n_steps == 0

    @override
    def update_(self, averages: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        decay = self.decay
        if self.technique.warmup and decay < 1:
            decay = warmed_up_decay(decay, self.updates)
        ema_update_(averages, values, decay)


def _steps_of_run(trainer: Trainer) -> float:
    if not trainer.lightning_module.automatic_optimization:
        raise SettingError("half_life_unit must be 'step' under manual optimization, but is 'run'")
    steps = trainer.estimated_stepping_batches
    if steps < 0 or math.isinf(steps):
        raise SettingError(
            "half_life_unit must be 'step', or 'epoch' with data that have a length, where nobody knows how many "
            "optimizer steps training has, but is 'run'"
        )
    return steps


def _steps_per_epoch(trainer: Trainer) -> int:
    if math.isinf(trainer.num_training_batches):
        raise SettingError(
            "half_life_unit must be 'step' where the training data have no length, but is 'epoch'; or set "
            "limit_train_batches of the Trainer"
        )
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
