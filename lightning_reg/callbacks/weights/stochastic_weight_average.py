"""The mean of the weights at the ends of the last epochs, under a learning rate that keeps them moving."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.weights.averages.average_session import AverageSession
from lightning_reg.callbacks.weights.averages.averaging import Buffers, Validate, WeightAverage
from lightning_reg.callbacks.weights.rates import set_rate
from lightning_reg.core.lightning import planned_epochs
from lightning_reg.core.session import Session, kept
from lightning_reg.core.step import Run
from lightning_reg.functional.annealing import Annealing, annealed, cyclic
from lightning_reg.functional.weights.averaging import mean_update_
from lightning_reg.settings import SettingError, check_choice, check_count, check_range

__all__ = ["StochasticWeightAverage"]

Interval = Literal["epoch", "step"]


class StochasticWeightAverage(WeightAverage):
    """Takes the mean of weights that a constant or cyclic learning rate visits late in training, and evaluates with it.

    What it does: from epoch ``start`` on it holds the learning rate (``lr``) and takes a snapshot of the weights at the
    end of every ``every_n``-th epoch, or after every ``every_n``-th step; all snapshots weigh the same. BatchNorm's
    statistics are then those of the epoch's training batches under the mean. The fit validates with the mean,
    checkpoints hold it as the model's ``state_dict``, and after the fit it is in the module. The weights that are
    trained lie beside it in checkpoints, so that a fit can be resumed anywhere.

    When to use: for the last quarter of a training that has converged; it finds a flatter minimum than the last
    weights are. When not: with a learning rate that has fallen to nothing and no ``lr``: all snapshots are then the
    same; before training has converged, where a mean is of weights from different valleys.

    Cost: one copy of the trainable weights, in memory and in checkpoints; nothing in a step but at snapshots. Where the
    network has BatchNorm, its inputs in the epoch so far, up to 512 MiB of the latest, are kept in the host's memory
    and in checkpoints that are written within an epoch; and before a validation or a checkpoint that follows a snapshot
    they are passed forward through a copy. ``buffers="copy"`` saves that; without BatchNorm there is no such cost.

    Interacts with: schedulers, which from ``start`` on are overruled where there is an ``lr``. Beside an
    ``ExponentialMovingAverage`` the first of the two gives the model its weights and the other only reports. The
    training step isn't run for BatchNorm's statistics: the inputs of its outermost calls of networks are passed to
    their copies, mixed and augmented as they were. Where the step itself computes such inputs from the outputs of other
    networks, other than by passing them on, those statistics are estimates, and a warning names them. Layers other than
    BatchNorm are in evaluation mode meanwhile, so that its statistics fit what evaluation computes;
    ``torch.optim.swa_utils.update_bn`` has dropout on. A few thousand samples are enough for statistics (Yuxin Wu,
    Justin Johnson, arXiv:2105.07576).

    Args:
        start: First epoch of averaging, counted from 0; as a float in [0, 1) a share of the epochs that ``max_epochs``
            and ``max_steps`` allow.
        end: Epoch before which averaging ends, likewise; the end of the fit where None.
        interval: Whether a snapshot is taken at the end of an ``"epoch"`` or after an optimizer ``"step"``; several
            optimizers that step in one batch count as one step.
        every_n: Epochs or steps between snapshots, at least 1; with ``lr_low`` the length of a cycle.
        lr: Learning rate of all parameter groups while averaging; the optimizer's and its scheduler's where None.
        lr_low: Lowest rate of a cycle, reached where the snapshot is taken; constant at ``lr`` where None.
        anneal_epochs: Epochs in which the rate moves from its value at ``start`` to a constant ``lr``; 0 for at once. A
            parameter group that is added later moves along the same curve, from the rate that it comes with.
        annealing: Shape of that change, ``"cosine"`` or ``"linear"``.
        buffers: BatchNorm's statistics: ``"recompute"`` for the mean, ``"copy"`` from the trained weights, or
            ``"average"`` over the snapshots.
        validate: ``"averaged"``: validation reports on the mean; ``"both"``: on the trained weights, and once more,
            with a prefix, on the mean.

    Logs:
        With ``validate="both"`` ``swa/<name>``: what the module logs in validation, measured with averaged weights.

    Raises:
        SettingError: If a setting is out of its range, averaging never starts within training, Lightning averages
            weights too, or the module holds something that can't be copied where a copy is needed.

    Reference:
        Pavel Izmailov, Dmitrii Podoprikhin, Timur Garipov, Dmitry Vetrov, Andrew Gordon Wilson: Averaging Weights Leads
        to Wider Optima and Better Generalization, UAI 2018, arXiv:1803.05407.

    >>> StochasticWeightAverage(start=0.75, lr=0.05).every_n
    1
    """

    prefix = "swa"
    delays = ("start", "every_n")

    def __init__(
        self,
        *,
        start: int | float = 0.75,
        end: int | float | None = None,
        interval: Interval = "epoch",
        every_n: int = 1,
        lr: float | None = None,
        lr_low: float | None = None,
        anneal_epochs: int = 10,
        annealing: Annealing = "cosine",
        buffers: Buffers = "recompute",
        validate: Validate = "averaged",
    ) -> None:
        _check_epoch("start", start)
        if end is not None:
            _check_epoch("end", end)
        check_choice("interval", interval, get_args(Interval))
        check_count("every_n", every_n)
        if lr is not None:
            check_range("lr", lr, low=0, low_open=True)
        if lr_low is not None:
            if lr is None:
                raise SettingError(f"lr must be given with lr_low, which is {lr_low}: it is the highest of a cycle")
            check_range("lr_low", lr_low, low=0, high=lr)
        check_count("anneal_epochs", anneal_epochs, low=0)
        check_choice("annealing", annealing, get_args(Annealing))
        self.start = start
        self.end = end
        self.interval: Interval = interval
        self.every_n = every_n
        self.lr = lr
        self.lr_low = lr_low
        self.anneal_epochs = anneal_epochs
        self.annealing: Annealing = annealing
        super().__init__(buffers=buffers, validate=validate)

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return StochasticAverageSession(self, run)

    def window(self, epochs: float) -> tuple[int, float]:
        """Returns the first epoch of averaging, and the one before which it ends.

        Args:
            epochs: Number of planned epochs of the fit; infinity if it is unknown.

        Raises:
            SettingError: If no snapshot would be taken, or a share is given and the number of epochs is not.
        """

        def epoch(name: str, value: int | float) -> int:
            if isinstance(value, int):
                return value
            if math.isinf(epochs):
                raise SettingError(f"{name} must be an epoch where nobody knows how many training has, but is {value}")
            return math.floor(value * epochs + 1e-9)  # 0.29 · 100 is a little less than 29

        start = epoch("start", self.start)
        end = math.inf if self.end is None else epoch("end", self.end)
        if start >= epochs:
            raise SettingError(
                f"start must be before the planned end of training, epoch {epochs}, or averaging never starts, but is "
                f"{self.start}"
            )
        if end <= start:
            raise SettingError(f"end must be after start, which is epoch {start}, but is {self.end}")
        if self.interval == "epoch" and start + self.every_n > min(end, epochs):
            raise SettingError(
                f"every_n must leave a snapshot between epochs {start} and {min(end, epochs)}, or averaging never "
                f"starts, but is {self.every_n}"
            )
        return start, end


@dataclass(eq=False)
class StochasticAverageSession(AverageSession):
    """One fit of a mean of snapshots."""

    technique: StochasticWeightAverage
    steps: int = kept(default=0)  # since averaging began
    last_epoch: int = kept(default=-1)  # the last one at whose end a snapshot was due
    rates_before: list[list[float]] = kept(default_factory=list)  # by optimizer and group, when it began
    start: int = 0
    end: float = 0.0

    @override
    def train_starts(self) -> None:
        super().train_starts()
        technique, trainer = self.technique, self.run.trainer
        is_trial = trainer.fast_dev_run  # type: ignore[attr-defined]  # set by Trainer.__init__ elsewhere
        self.start, self.end = (0, math.inf) if is_trial else technique.window(planned_epochs(trainer))
        if technique.lr_low is not None and technique.interval == "epoch" and math.isinf(trainer.num_training_batches):
            raise SettingError("interval must be 'step' where the training data have no length and the rate is cyclic")

    @property
    @override
    def is_averaging(self) -> bool:
        return self.start <= self.run.trainer.current_epoch < self.end

    @override
    def batch_starts(self, batch_idx: int) -> None:
        super().batch_starts(batch_idx)
        self._set_rates()

    @override
    def steps_again(self) -> None:
        super().steps_again()
        self._set_rates()

    def _set_rates(self) -> None:
        """Sets the learning rates, before every step, because a scheduler may have set them since."""
        trainer, lr = self.run.trainer, self.technique.lr
        if lr is None or trainer.current_epoch < self.start:
            return
        if not self.rates_before:
            self.rates_before = [
                [float(group["lr"]) for group in optimizer.param_groups] for optimizer in trainer.optimizers
            ]
        for optimizer, rates in zip(trainer.optimizers, self.rates_before, strict=True):
            rates += [float(group["lr"]) for group in optimizer.param_groups[len(rates) :]]  # that have come since
            for group, before in zip(optimizer.param_groups, rates, strict=False):
                set_rate(group, self._rate(lr, before))

    def _rate(self, lr: float, before: float) -> float:
        technique, trainer = self.technique, self.run.trainer
        if technique.lr_low is not None:
            length = technique.every_n
            if technique.interval == "epoch":
                length *= math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            return cyclic(lr, technique.lr_low, self.steps, length)
        if technique.anneal_epochs == 0:
            return lr
        progress = (trainer.current_epoch - self.start) / technique.anneal_epochs
        return annealed(before, lr, progress, technique.annealing)

    @property
    @override
    def counts_batches(self) -> bool:
        return self.technique.interval == "epoch" or super().counts_batches  # a cycle's length is that of epochs

    @override
    def is_due_after_step(self) -> bool:
        if not self.is_averaging:
            return False
        self.steps += 1
        return self.technique.interval == "step" and self.steps % self.technique.every_n == 0

    @override
    def is_due_after_batch(self) -> bool:
        # Here rather than at the end of the epoch: validation comes before that.
        is_at_end = self.technique.interval == "epoch" and self.is_averaging and self.run.trainer.is_last_batch
        return is_at_end and self._ends_epoch()

    @override
    def epoch_ends(self) -> None:
        # An epoch that was cut short, by max_steps for one, had no last batch.
        if self.technique.interval == "epoch" and self.is_averaging and self._ends_epoch():
            self.take()

    @override
    def train_ends(self) -> None:
        super().train_ends()
        is_unknown = math.isinf(self.run.trainer.num_training_batches)  # how long an epoch is; perhaps without an end
        if self.technique.interval == "epoch" and is_unknown and self.updates == 1:
            rank_zero_warn(
                "StochasticWeightAverage has taken a single snapshot, and so averaged nothing: choose interval='step' "
                "where the data has no end"
            )

    def _ends_epoch(self) -> bool:
        """Whether a snapshot is due at the end of this epoch; True once per epoch."""
        epoch = self.run.trainer.current_epoch
        if epoch == self.last_epoch:
            return False
        self.last_epoch = epoch
        return (epoch - self.start + 1) % self.technique.every_n == 0

    @override
    def update_(self, averages: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        mean_update_(averages, values, self.updates)


def _check_epoch(name: str, value: int | float) -> None:
    if isinstance(value, int):
        check_count(name, value, low=0)
    else:
        check_range(name, value, low=0, high=1)
