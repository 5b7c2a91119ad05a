"""R-Drop: consistent predictions of two passes with different dropout."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.batch.copies_mean import CopiesMean
from lightning_reg.callbacks.forward.dropout_schedule import DropoutSchedule
from lightning_reg.callbacks.loss.logits import LogitsSession, copies_of
from lightning_reg.callbacks.loss.loss_term import LossTerm
from lightning_reg.core.batches import repeated, step_with_repeated
from lightning_reg.core.facts import Log
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.functional.loss.output_penalties import symmetric_divergence
from lightning_reg.nn.rates import is_stochastic, rates
from lightning_reg.settings import SettingError, check_range

__all__ = ["RDrop"]


class RDrop(LossTerm):
    """Lets every sample through the network twice, with different dropout, and asks for the same prediction.

    What it does: the training step gets every sample of the batch twice, in one batch of twice the size, so that there
    is one forward pass and each copy has its own dropout mask. From the logits that the training step passes to
    ``cross_entropy`` (``nll_loss`` likewise), λ times the mean over samples of ½(KL(p₁‖p₂) + KL(p₂‖p₁)) joins the loss
    that goes into backward; the module's own loss becomes the mean over both passes. The module's code isn't changed.

    When to use: with dropout or stochastic depth, on small data sets and in fine-tuning, where it closes most of the
    gap between training with dropout and predicting without. When not: where a step's time or memory is short.

    Cost: a training step of twice the batch, in compute and in memory of activations. No state.

    Interacts with: BatchNorm, whose statistics are those of the doubled batch, the same in expectation. Metrics of the
    training step see each sample twice. ``BatchMixing`` mixes both copies in the same way, with one weight for the
    batch (``per_sample=False``).

    Args:
        weight: Strength λ, at least 0; 0.5 to 5 is usual.
        schedule: Factor of the strength over the course of training; constant where None. While it is 0,
            batches aren't doubled.

    Logs:
        ``penalty/r_drop``, its value, and ``penalty/r_drop_share``, its share of loss plus penalty, at the steps the
        trainer logs.

    Raises:
        SettingError: If ``weight`` is negative or not finite or the module optimizes manually; at the first batch, if
            its tensors don't have one row per sample, the training step calls neither loss, the targets of both passes
            differ because it mixes samples or compares them with each other, its loss adds a sum over samples to a
            mean, or both passes predict the same because nothing in the module is stochastic.

    Reference:
        Xiaobo Liang, Lijun Wu, Juntao Li, Yue Wang, Qi Meng, Tao Qin, Wei Chen, Min Zhang, Tie-Yan Liu: R-Drop:
        Regularized Dropout for Neural Networks, NeurIPS 2021, arXiv:2106.14448. As in its published code, the two cross
        entropies are averaged; the paper's formula has their sum, and so a λ of twice the size.

    >>> RDrop(weight=1.0).weight
    1.0
    """

    tag = "r_drop"
    usual_ranges = (Log("weight", 0.1, 5.0),)

    def __init__(self, *, weight: float, schedule: StrengthSchedule | None = None) -> None:
        check_range("weight", weight, low=0)
        super().__init__(schedule=schedule)
        self.weight = weight

    @property
    @override
    def is_idle(self) -> bool:
        return self.weight == 0

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return RDropSession(self, run, self._penalty, copies=2)

    def _penalty(self, logits: Tensor, counted: Tensor | None) -> Tensor:
        first, second = copies_of(logits, 2, technique=type(self).__name__)
        counted = None if counted is None else counted.chunk(2)[0]
        return symmetric_divergence(first, second, self.weight, counted=counted)


@dataclass(eq=False)
class RDropSession(LogitsSession):
    """One fit of R-Drop.

    Attributes:
        mean: The module's own loss as the mean over both passes.
    """

    mean: CopiesMean = field(init=False)

    @override
    def _attach(self) -> None:
        """Attaches later, so that layers that change batches lie inside and change both copies alike."""
        self.mean = CopiesMean(self.run, 2, technique=type(self.technique).__name__)

    @override
    def train_starts(self) -> None:
        super()._attach()

    @override
    def _step(self, training_step: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        if self.strength.now(self.run.trainer) == 0:  # also in the first step, unlike other terms
            self._log({})
            return training_step(batch, *args, **kwargs)
        own = training_step
        if not self.is_checked:
            name = type(self.technique).__name__
            own = step_with_repeated(training_step, batch, times=2, technique=name)

        def step(larger: Any, *args: Any, **kwargs: Any) -> Any:
            alone = partial(training_step, batch, *args, **kwargs)
            return self.mean.run(partial(own, larger, *args, **kwargs), alone, batch)

        return super()._step(step, batch, *args, **kwargs)

    @override
    def watched_batch(self, batch: Any) -> Any:
        return repeated(batch, 2, technique=type(self.technique).__name__)

    @override
    def term(self) -> Tensor:
        if not self.is_checked:
            self._check()
        return super().term()

    def _check(self) -> None:
        name = type(self.technique).__name__
        for logits, _ in self.seen:
            if not self._differs(*copies_of(logits.detach(), 2, technique=name)):
                raise SettingError(
                    "weight must be left out, because both passes predict the same: the module has no layer that is "
                    f"stochastic in training; put dropout into it, or use InsertDropout, with {name}"
                )

    def _differs(self, first: Tensor, second: Tensor) -> bool:
        module = self.run.module
        # A schedule may begin at a rate of 0.
        if any(isinstance(technique, DropoutSchedule) for technique in self.run.techniques()):
            return True
        if any(rate.value > 0 for rate in rates(module)) or any(map(is_stochastic, module.modules())):
            return True
        # The rows of a matrix product may be rounded differently.
        rounding = 16 * torch.finfo(first.dtype).eps * first.abs().max()
        return bool((first - second).abs().max() > rounding)
