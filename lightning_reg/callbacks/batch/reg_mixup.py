"""Mixup beside the clean batch, as a regularizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.batch.batch_mixing import BatchMixing, MixingSession
from lightning_reg.callbacks.batch.copies_mean import CopiesMean
from lightning_reg.core.batches import Key, part_of, repeated, step_with_repeated, with_parts
from lightning_reg.core.copies.repetition import loss_of
from lightning_reg.core.facts import Log
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Draw, Mixup

__all__ = ["RegMixup"]


class RegMixup(BatchMixing):
    """Trains on the clean batch and on a mixed copy of it: L(x, y) + L(mixup(x, y)), in one forward pass.

    What it does: the training step gets a batch of twice the size, whose second half is mixed with one weight λ from
    Beta(α, α), as ``BatchMixing`` does it, and the loss that goes into backward is the sum of the clean half's and the
    mixed half's: twice the mean over the whole batch, which the module logs; a sum over the batch's samples is taken
    as it is. Labels aren't changed, for metrics. Evaluation isn't affected.

    When to use: for classifiers that should be calibrated, and detect inputs unlike those of training, where Mixup
    alone loses confidence on clean samples. When not: where a step's time or memory is short; beside another mixing.

    Cost: a training step of twice the batch, in compute and in memory of activations. No state.

    Interacts with: BatchNorm, whose statistics are those of both halves. Metrics of the training step see each sample
    twice, once mixed. Terms of other techniques are added once. The rest is as for ``BatchMixing(per_sample=True)``.

    Deviates from the paper: the minor weight is at most 0.5 (the two samples swap roles above it).

    Args:
        alpha: Parameter α of Beta(α, α), at least 0; 10, where λ is near ½, to 20 is usual; 0 adds no mixed half.
        prob: Probability that a batch gets a mixed half, in [0, 1].
        input_key: Position of the inputs in a batch: an index, a name, or a getter and a setter.
        target_key: Position of the targets in a batch, likewise.
        epochs: Number of epochs with a mixed half, at least 0; all where None.
        seed: Seed of the random numbers; that of ``seed_everything`` where None.

    Raises:
        SettingError: If an argument can't be used, or the module optimizes manually; in training, if a batch's tensors
            don't have one row per sample, or, as with ``BatchMixing``, if no loss of torch's is computed from the
            targets.

    Reference:
        Francesco Pinto, Harry Yang, Ser-Nam Lim, Philip H. S. Torr, Puneet K. Dokania: RegMixup: Mixup as a Regularizer
        Can Surprisingly Improve Accuracy and Out Distribution Robustness, NeurIPS 2022, arXiv:2206.14502.

    >>> RegMixup(alpha=10.0).alpha
    10.0
    """

    usual_ranges = (Log("alpha", 1.0, 30.0),)

    def __init__(
        self,
        *,
        alpha: float = 10.0,
        prob: float = 1.0,
        input_key: Key = 0,
        target_key: Key = 1,
        epochs: int | None = None,
        seed: int | None = None,
    ) -> None:
        mix = Mixup(alpha=alpha, prob=prob)
        super().__init__(mix, input_key=input_key, target_key=target_key, epochs=epochs, seed=seed)
        self.alpha = alpha
        self.prob = prob

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return RegMixupSession(self, run)


@dataclass(eq=False)
class RegMixupSession(MixingSession):
    """One fit of RegMixup.

    Attributes:
        mean: The loss as the mean over both halves.
    """

    mean: CopiesMean = field(init=False)

    innermost: ClassVar[bool] = True  # terms that others add to the loss must not count twice

    @override
    def __post_init__(self) -> None:
        if not self.run.module.automatic_optimization:
            raise SettingError(
                "automatic_optimization must be True with RegMixup: under manual optimization the sum of the two "
                "losses can't reach the one that you hand to manual_backward"
            )
        super().__post_init__()
        self.mean = CopiesMean(self.run, 2, technique=self.name, repeats=lambda: self.current is not None)

    @override
    def _mixed(self, batch: Any, inputs: Tensor, targets: Tensor, draw: Draw) -> tuple[Any, Tensor, Tensor | None]:
        technique = self.technique
        batch = repeated(batch, 2, technique=self.name)
        rows = len(part_of(batch, technique.input_key, name="input_key"))
        if rows != 2 * len(inputs):
            raise SettingError(
                f"input_key must lead to inputs with one row a sample with RegMixup, {2 * len(inputs)} of a doubled "
                f"batch, but leads to {rows}"
            )
        # The partner of the second half's first sample is the first half's last one: the same as in a half alone.
        both = part_of(batch, technique.target_key, name="target_key")
        mixed = torch.cat((inputs, draw.change(inputs)))
        batch = with_parts(batch, [(technique.input_key, mixed), (technique.target_key, both)])
        if draw.minor_weight is None:
            return batch, both, None
        minor = draw.minor_weight.expand(len(inputs))
        return batch, both, torch.cat((torch.zeros_like(minor), minor))

    @override
    def _step(self, training_step: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        own = training_step
        if not self.is_checked:
            own = step_with_repeated(training_step, batch, times=2, technique=self.name)
        output = self.mean.run(
            partial(super()._step, own, batch, *args, **kwargs), partial(training_step, batch, *args, **kwargs), batch
        )
        loss = loss_of(output)
        if self.current is None or loss is None:
            return output
        # A mean over both halves has half of each.
        return {**output, "loss": 2 * loss} if isinstance(output, Mapping) else 2 * loss
