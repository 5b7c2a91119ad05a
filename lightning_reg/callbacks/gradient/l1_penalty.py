"""L1 penalty on weights."""

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.gradient.weight_penalty import WeightPenalty
from lightning_reg.core.facts import Log
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.functional.gradient.penalties import add_elastic_net_gradient_, l1_penalty
from lightning_reg.functional.weights.proximal import soft_threshold_
from lightning_reg.settings import check_range

__all__ = ["L1Penalty"]


class L1Penalty(WeightPenalty):
    """Pulls every weight toward zero by the same amount: λ Σ|w| joins the loss.

    What it does: adds λ sign(w) to the gradients before every optimizer step, without a graph. The result is that of
    the penalty written into the loss, under gradient accumulation, mixed precision, DDP and manual optimization too,
    while the loss that the module logs stays clean; only torch's own clipping, called in a training step, comes before
    it. With ``proximal=True`` weights are instead moved toward zero by lr · λ after the step, and stop there:
    unimportant ones become exactly zero.

    When to use: for sparse weights, always with ``proximal=True``; without it weights only oscillate around zero. When
    not: against overfitting alone, where L2 or dropout usually do better.

    Cost: reads weights and gradients and writes gradients once per optimizer step; proximal: reads and writes weights
    once. No state.

    Interacts with: AdamW's and SGD's momentum, which the proximal step leaves out: it uses the plain learning rate.
    Masks on gradients hold for the penalty, too, in the module's ``on_after_backward`` under automatic optimization,
    but not for the proximal step, beside ``SharpnessAwareMinimization`` nor as hooks of tensors: use ``exclude``.

    Args:
        weight: Strength λ, at least 0; 1e-6 to 1e-4 is usual, and with ``proximal=True`` up to 1e-2.
        proximal: Whether weights are shrunk after the step, to exact zeros, rather than pulled through the gradient.
        include: Globs over names of parameters that are penalized.
        exclude: Globs over names of parameters that are left out.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are left out.
        schedule: Factor of the strength over the course of training; constant where None.

    Logs:
        ``penalty/l1``, its value, and ``penalty/l1_share``, its share of loss plus penalty, at the steps the trainer
        logs; proximal: ``penalty/l1_zeros``, the fraction of penalized weights that are exactly zero.

    Raises:
        SettingError: If ``weight`` is negative or not finite, a glob matches nothing, the optimizer is LBFGS, or with
            ``proximal=True`` has no learning rate.

    Reference:
        Robert Tibshirani: Regression Shrinkage and Selection via the Lasso, Journal of the Royal Statistical Society B
        58, 1996. Proximal: Ingrid Daubechies, Michel Defrise, Christine De Mol, arXiv:math/0307152, 2004.

    >>> L1Penalty(weight=1e-3, proximal=True).weight
    0.001
    """

    tag = "l1"
    usual_ranges = (Log("weight", 1e-6, 1e-3),)

    def __init__(
        self,
        *,
        weight: float,
        proximal: bool = False,
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
        self.proximal = proximal

    @property
    @override
    def adds_gradient(self) -> bool:
        return self.weight > 0 and not self.proximal

    @property
    @override
    def shrinks(self) -> bool:
        return self.weight > 0 and self.proximal

    @override
    def value(self, weights: list[Tensor]) -> Tensor:
        return l1_penalty(weights, self.weight)

    @override
    def add_gradient_(self, weights: list[Tensor], gradients: list[Tensor], factor: float | Tensor) -> None:
        add_elastic_net_gradient_(gradients, weights, l1=self.weight * factor)

    @override
    def shrink_(self, weights: list[Tensor], factor: float | Tensor) -> None:
        soft_threshold_(weights, self.weight * factor)
