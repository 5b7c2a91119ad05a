"""A penalty on features that vary together."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.loss.activations import ActivationsSession, activations_of
from lightning_reg.callbacks.loss.loss_term import LossTerm
from lightning_reg.core.facts import Log
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.core.selection import as_patterns
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.functional.loss.output_penalties import decorrelation_penalty
from lightning_reg.settings import check_range

__all__ = ["DecorrelationPenalty"]


class DecorrelationPenalty(LossTerm):
    """Penalizes features that vary together over a batch: the covariances of what chosen modules return (DeCov).

    What it does: λ/2 times the sum of all squared covariances of two different features, over the samples of the batch,
    joins the loss that goes into backward, summed over modules. Variances aren't penalized. In feature maps
    (N, C, H, W) the channels are the features and each position is a sample; in sequences (N, T, D) each time step is.
    The loss that the module logs stays clean. Computed in at least 32 bits, also under autocast.

    When to use: on the fully connected features before the head, where a network overfits though it has dropout; it
    works beside dropout. When not: with batches much smaller than the number of features, whose covariances are noise;
    with features that are whitened or orthogonal already.

    Cost: one matrix product of N · D · min(N, D) per module, in the forward and in the backward pass. No state.

    Interacts with: several processes, each of which uses the covariances of its own part of the batch. torch.compile:
    attach the callback before the first step of the compiled module, else its hooks aren't seen.

    Args:
        weight: Strength λ, at least 0; 0.001 to 0.1 is usual for hundreds of features, as the term sums over pairs.
        include: Globs over names of modules; where empty, all activation modules. If a module returns several tensors,
            the first counts.
        exclude: Globs over names of modules that are left out.
        schedule: Factor of the strength over the course of training; constant where None.

    Logs:
        ``penalty/decorrelation``, its value, and ``penalty/decorrelation_share``, its share of loss plus penalty, at
        the steps the trainer logs.

    Raises:
        SettingError: If ``weight`` is negative or not finite, a glob matches nothing, the module optimizes manually, or
            a chosen module returns no features.

    Reference:
        Michael Cogswell, Faruk Ahmed, Ross Girshick, Larry Zitnick, Dhruv Batra: Reducing Overfitting in Deep Networks
        by Decorrelating Representations, ICLR 2016, arXiv:1511.06068.

    >>> DecorrelationPenalty(weight=0.01, include=("classifier.1",)).weight
    0.01
    """

    tag = "decorrelation"
    usual_ranges = (Log("weight", 1e-4, 1.0),)

    def __init__(
        self,
        *,
        weight: float,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        schedule: StrengthSchedule | None = None,
    ) -> None:
        check_range("weight", weight, low=0)
        super().__init__(schedule=schedule)
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.weight = weight

    @property
    @override
    def is_idle(self) -> bool:
        return self.weight == 0

    @override
    def new_session(self, run: Run) -> Session[Any]:
        choose = partial(activations_of, run.module, self.include, self.exclude)
        return DecorrelationSession(self, run, choose, expects_all=bool(self.include))


@dataclass(eq=False)
class DecorrelationSession(ActivationsSession):
    """One fit of the decorrelation penalty."""

    technique: DecorrelationPenalty

    @override
    def value(self, activations: Tensor, noted: Any) -> Tensor:
        # Autocast would multiply matrices in 16 bits.
        with torch.autocast(activations.device.type, enabled=False):
            return decorrelation_penalty(activations, self.technique.weight)
