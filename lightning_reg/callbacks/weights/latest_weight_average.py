"""The mean of the latest snapshots of the weights, as training goes on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from typing_extensions import override

from lightning_reg.callbacks.weights.averages.average_session import AverageSession
from lightning_reg.callbacks.weights.averages.averaging import Buffers, Validate, WeightAverage
from lightning_reg.core.facts import Linear
from lightning_reg.core.gradients import local, to_shard, whole
from lightning_reg.core.schedules import warn_if_never
from lightning_reg.core.session import Session, kept
from lightning_reg.core.step import Run
from lightning_reg.functional.weights.averaging import latest_mean_
from lightning_reg.settings import SettingError, check_count

__all__ = ["LatestWeightAverage"]

_USUAL_SHARE = 0.01  # of the run, which the window spans


class LatestWeightAverage(WeightAverage):
    """Evaluates with the mean of the latest snapshots of the weights, all of which weigh the same (LAWA).

    What it does: every ``every_n_steps`` steps the weights are copied, and the copy before the last ``window`` is
    dropped; the average is the mean of the copies that are kept. The fit validates with it, checkpoints hold it as the
    model's ``state_dict``, and after the fit it is in the module. The weights that are trained, and the snapshots, lie
    beside it in checkpoints, so that a fit can be resumed anywhere.

    When to use: instead of an ``ExponentialMovingAverage``, whose tail never ends; to see long before the end of
    training what a lower rate would bring. It is best together with a learning rate that is annealed, not instead of it
    (Ajroldi, Orvieto, Geiping, arXiv:2502.06761), though at the very end, where the rate is 0 and snapshots hardly
    differ, it brings nothing. When not: where ``window`` copies don't fit into memory; across a jump of the learning
    rate, which puts a mean between two valleys.

    Cost: ``window`` copies of the trainable weights and one of the average, in memory and in checkpoints; nothing in a
    step but at snapshots, which read all copies. BatchNorm's statistics are recomputed as in
    :class:`StochasticWeightAverage`, which remembers inputs of the epoch.

    Logs:
        With ``validate="both"`` ``lawa/<name>``: what the module logs in validation, measured with averaged weights.

    Interacts with: other averages: the first in the list gives the model its weights, the others only report.
    Constraints on convex sets hold for the mean, that of ``UnitNorm`` doesn't.

    Deviates from the paper: snapshots are ``every_n_steps`` steps apart rather than an epoch.

    Args:
        window: Number of snapshots in the mean, at least 1; with 1 it is the latest.
        every_n_steps: Optimizer steps between snapshots, at least 1; where None, as many as let the window span a
            hundredth of the run. Several optimizers that step in one batch count as one step.
        buffers: BatchNorm's statistics: ``"recompute"`` for the mean, ``"copy"`` from the trained weights, or
            ``"average"`` over the snapshots.
        validate: ``"averaged"``: validation reports on the mean; ``"both"``: on the trained weights, and once more,
            with a prefix, on the mean.

    Raises:
        SettingError: If a setting is out of its range, ``every_n_steps`` is None and the run has no known length,
            Lightning averages weights too, or the strategy flattens parameters.

    Reference:
        Jean Kaddour: Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight Averaging,
        2022, arXiv:2209.14981. Sunny Sanyal, Atula Neerkaje, Jean Kaddour, Abhishek Kumar, Sujay Sanghavi: Early Weight
        Averaging meets High Learning Rates for LLM Pre-training, 2023, arXiv:2306.03241.

    >>> LatestWeightAverage(window=5).every_n_steps is None
    True
    """

    prefix = "lawa"
    delays = ("every_n_steps",)
    usual_ranges = (Linear("window", 3, 10),)

    def __init__(
        self,
        *,
        window: int = 5,
        every_n_steps: int | None = None,
        buffers: Buffers = "recompute",
        validate: Validate = "averaged",
    ) -> None:
        check_count("window", window)
        if every_n_steps is not None:
            check_count("every_n_steps", every_n_steps)
        super().__init__(buffers=buffers, validate=validate)
        self.window = window
        self.every_n_steps = every_n_steps

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return LatestSession(self, run)


@dataclass(eq=False)
class LatestSession(AverageSession):
    """One fit of a mean of the latest snapshots."""

    technique: LatestWeightAverage
    steps: int = kept(default=0)
    snapshots: list[dict[str, Tensor]] = kept(default_factory=list)  # the latest last
    interval: int = field(default=1, init=False)

    @override
    def kept(self) -> dict[str, Any]:
        return {**super().kept(), "snapshots": [_whole(snapshot) for snapshot in self.snapshots]}

    @override
    def train_starts(self) -> None:
        super().train_starts()
        technique = self.technique
        if technique.every_n_steps is not None:
            self.interval = technique.every_n_steps
            self.is_told = warn_if_never(technique, self.run.trainer, "step", self.interval, "every_n_steps")
        else:
            span = _USUAL_SHARE * _steps_of_run(self.run.trainer)
            self.interval = max(1, round(span / technique.window))

    @property
    @override
    def is_averaging(self) -> bool:
        return True

    @override
    def is_due_after_step(self) -> bool:
        self.steps += 1
        return self.steps % self.interval == 0

    @override
    def take(self) -> None:
        super().take()  # which copies what isn't averaged yet
        averages, tensors = self.averaged
        if not averages:
            return
        # The latest snapshot reuses the memory of the one that is dropped.
        latest = self.snapshots.pop(0) if len(self.snapshots) == self.technique.window else {}
        self.snapshots.append(latest)
        for snapshot in self.snapshots:
            for name, tensor in zip(self.names, tensors, strict=True):
                value = snapshot.get(name)
                if value is None or value.shape != tensor.shape:  # unfrozen or replaced since
                    before = self.held.values[name].to(tensor.dtype, copy=True)  # what it was while frozen
                    snapshot[name] = torch.empty_like(tensor) if snapshot is latest else before
                elif value.device != tensor.device or isinstance(value, DTensor) != isinstance(tensor, DTensor):
                    snapshot[name] = to_shard(value, tensor)  # of a checkpoint
        rows = [[local(snapshot[name]) for name in self.names] for snapshot in self.snapshots]
        with torch.no_grad():
            torch._foreach_copy_(rows[-1], list(map(local, tensors)))
        latest_mean_(averages, rows)

    @override
    def update_(self, averages: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Does nothing: :meth:`take` computes the mean of the snapshots."""


def _whole(snapshot: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: whole(tensor).cpu() if isinstance(tensor, DTensor) else tensor for name, tensor in snapshot.items()}


def _steps_of_run(trainer: Trainer) -> float:
    if trainer.lightning_module.automatic_optimization:
        steps = trainer.estimated_stepping_batches
        if 0 <= steps < math.inf:
            return steps
    raise SettingError(
        "every_n_steps must be given where nobody knows how many optimizer steps training has: it has no planned end, "
        "the training data have no length, or optimization is manual"
    )
