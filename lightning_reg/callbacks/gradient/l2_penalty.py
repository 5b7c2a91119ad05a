"""L2 penalty on weights."""

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.gradient.weight_penalty import WeightPenalty
from lightning_reg.core.facts import Log
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.functional.gradient.penalties import add_elastic_net_gradient_, l2_penalty
from lightning_reg.settings import check_range

__all__ = ["L2Penalty"]


class L2Penalty(WeightPenalty):
    """Pulls weights toward zero in proportion to their size: λ/2 Σw² joins the loss.

    What it does: adds λw to the gradients before every optimizer step, without a graph. The result is that of the
    penalty written into the loss, under gradient accumulation, mixed precision, DDP and manual optimization too,
    while the loss that the module logs stays clean; only torch's own clipping, called in a training step, comes before
    it (``self.clip_gradients`` doesn't).

    When to use: with SGD, or where the penalty should pass through the optimizer like any other part of the loss.
    When not: with Adam and its relatives, whose adaptive steps undo most of it; there decoupled decay (AdamW's
    ``weight_decay``) is what is usually meant.

    Cost: reads weights and gradients and writes gradients once per optimizer step. No state.

    Interacts with: masks on gradients, which hold for the penalty, too, in the module's ``on_after_backward`` under
    automatic optimization, but not beside ``SharpnessAwareMinimization`` nor as hooks of tensors: use ``exclude``.

    Args:
        weight: Strength λ, at least 0; 1e-5 to 1e-3 is usual. With the factor 1/2 it equals torch's ``weight_decay``;
            Keras's ``L2(l)``, l Σw², has no such factor: a ``weight`` of 2 l is the same.
        include: Globs over names of parameters that are penalized.
        exclude: Globs over names of parameters that are left out.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are left out.
        schedule: Factor of the strength over the course of training; constant where None.

    Logs:
        ``penalty/l2``, its value, and ``penalty/l2_share``, its share of loss plus penalty, at the steps the trainer
        logs; of several instances ``penalty/l2_1`` and so on.

    Raises:
        SettingError: If ``weight`` is negative or not finite, a glob matches nothing, or the optimizer is LBFGS.

    Reference:
        Anders Krogh, John A. Hertz: A Simple Weight Decay Can Improve Generalization, NeurIPS 1991.

    >>> L2Penalty(weight=1e-4, exclude=("head.*",)).weight
    0.0001
    """

    tag = "l2"
    usual_ranges = (Log("weight", 1e-6, 1e-2),)

    def __init__(
        self,
        *,
        weight: float,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        exclude_norm_and_bias: bool = True,
        schedule: StrengthSchedule | None = None,
    ) -> None:
        check_range("weight", weight, low=0)
        super().__init__(
            include=include,
            exclude=exclude,
            exclude_norm_and_bias=exclude_norm_and_bias,
            schedule=schedule,
        )
        self.weight = weight

    @property
    @override
    def l2_strength(self) -> float:
        return self.weight

    @property
    @override
    def adds_gradient(self) -> bool:
        return self.weight > 0

    @override
    def value(self, weights: list[Tensor]) -> Tensor:
        return l2_penalty(weights, self.weight)

    @override
    def add_gradient_(self, weights: list[Tensor], gradients: list[Tensor], factor: float | Tensor) -> None:
        add_elastic_net_gradient_(gradients, weights, l2=self.weight * factor)
