"""Weights averaged over training, the latest counting most."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_reg.attach.averaging import Buffers, Validate, WeightAverage
from lightning_reg.functional.averaging import decay_of_half_life, ema_update_, warmed_up_decay
from lightning_reg.settings import SettingError, check_choice, check_count, check_range

__all__ = ["ExponentialMovingAverage"]

Unit = Literal["step", "epoch"]


class ExponentialMovingAverage(WeightAverage):
    """Averages the weights over training with exponentially falling shares, and evaluates with the average.

    What it does: after a step, average ← decay · average + (1 - decay) · weights; the first time the weights are
    copied. The fit validates with the average, checkpoints hold it as the model's ``state_dict``, and after the fit it
    is in the module, so that ``test``, ``predict`` and ``ckpt_path="best"`` use it, also in a new trainer and without
    this callback. The weights that are trained lie beside it in checkpoints, and a resumed fit goes on with them. An
    average that never began changes nothing; where an exception ends the fit the trained weights stay.

    When to use: nearly always with a constant or slowly falling learning rate; it takes the noise of the last steps out
    of the weights. When not: at the end of a schedule that falls to 0 little is left to average out; with a half-life
    longer than training, whatever the warm-up.

    Cost: one copy of the trainable weights, in memory and in checkpoints; in 32 bits where weights have 16. An
    update reads weights and average and writes the average. Before and after validation the two change places.

    Logs nothing of its own; with ``validate="both"`` what the module logs in validation comes a second time with
    ``ema/`` before its name, ``ema_1/`` and so on where there are several.

    Interacts with: every other callback, because it averages the weights as the step, its constraints and Lookahead
    leave them. Several may stand side by side: the first gives the model its weights, the others only report, as
    ``ema_2/val_loss`` for one. Constraints on convex sets (``MaxNorm``, ``NonNegative``) hold for the average, that of
    ``UnitNorm`` doesn't; parametrizations are averaged underneath, and spectral normalization computes its singular
    vectors anew. ``EarlyStopping`` and ``ModelCheckpoint`` see the metrics of the average, but with
    ``validate="both"`` those of the trained weights under the module's names.

    Several optimizers that step in one batch count as one step.

    Args:
        decay: Share of the average that is kept at each update, in (0, 1); 0.999 where ``half_life`` isn't given
            either.
        half_life: After how long a weight counts half, instead of ``decay``; positive.
        half_life_unit: Whether ``half_life`` counts optimizer steps or epochs.
        warmup: Whether the n-th update keeps at most (1 + n) / (10 + n), so that a short training isn't averaged with
            its beginning.
        start_step: Steps before the average begins.
        start_epoch: Epochs before the average begins.
        every_n_steps: Steps between two updates; ``decay`` counts updates, ``half_life`` steps.
        buffers: Running statistics of normalization layers: ``"average"`` like weights, ``"copy"`` as they are, or
            ``"recompute"`` by passing an epoch of training batches through the averaged model before each validation
            and at the end (BatchNorm alone). Counters and other buffers are never averaged.
        validate: ``"averaged"``: validation reports on the average; ``"both"``: on the trained weights, and once more,
            with a prefix, on the average, which takes a second pass.

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
            check_range("decay", decay, low=0, high=1, low_open=True, high_open=True)
        if half_life is not None:
            check_range("half_life", half_life, low=0, low_open=True)
        check_choice("half_life_unit", half_life_unit, get_args(Unit))
        check_count("start_step", start_step, low=0)
        check_count("start_epoch", start_epoch, low=0)
        check_count("every_n_steps", every_n_steps)
        self.decay = 0.999 if decay is None and half_life is None else decay
        self.half_life = half_life
        self.half_life_unit: Unit = half_life_unit
        self.warmup = warmup
        self.start_step = start_step
        self.start_epoch = start_epoch
        self.every_n_steps = every_n_steps
        self.steps = self.steps_since_start = 0
        self._decay = self.decay or 0.0
        super().__init__(buffers=buffers, validate=validate)

    @override
    def reset(self) -> None:
        super().reset()
        self.steps = self.steps_since_start = 0

    @property
    @override
    def counters(self) -> dict[str, Any]:
        return {**super().counters, "steps": self.steps, "steps_since_start": self.steps_since_start}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.half_life is not None:
            steps = self.half_life
            if self.half_life_unit == "epoch":
                steps *= _steps_per_epoch(trainer)
            self._decay = decay_of_half_life(steps / self.every_n_steps)

    @override
    def is_due(self, trainer: Trainer, has_stepped: bool) -> bool:
        if not has_stepped:
            return False
        self.steps += 1
        if self.steps <= self.start_step or trainer.current_epoch < self.start_epoch:
            return False
        self.steps_since_start += 1
        return (self.steps_since_start - 1) % self.every_n_steps == 0

    @override
    def update_(self, averages: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        ema_update_(averages, values, warmed_up_decay(self._decay, self.updates) if self.warmup else self._decay)


def _steps_per_epoch(trainer: Trainer) -> int:
    if math.isinf(trainer.num_training_batches):
        raise SettingError(
            "half_life_unit must be 'step' where an epoch has no end, but is 'epoch'; or set limit_train_batches of "
            "the Trainer"
        )
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
