"""Elastic net: an L1 and an L2 penalty on weights together."""

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.gradient.weight_penalty import WeightPenalty
from lightning_reg.core.facts import Log
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.functional.gradient.penalties import add_elastic_net_gradient_, elastic_net_penalty
from lightning_reg.functional.weights.proximal import soft_threshold_
from lightning_reg.settings import SettingError, check_range

__all__ = ["ElasticNetPenalty"]


class ElasticNetPenalty(WeightPenalty):
    """Pulls weights toward zero, by a fixed amount and in proportion: λ₁ Σ|w| + λ₂/2 Σw² joins the loss.

    What it does: adds λ₁ sign(w) + λ₂w to the gradients before every optimizer step, without a graph, reading and
    writing memory once for both. The result is that of the penalty written into the loss, under gradient accumulation,
    mixed precision, DDP and manual optimization too, while the loss that the module logs stays clean; only torch's own
    clipping, called in a training step, comes before it. With ``proximal=True`` the L1 part is instead a soft threshold
    of lr · λ₁ after the step, which gives exact zeros.

    When to use: for sparse weights where groups of inputs are correlated: L1 alone picks one of each group at random.
    When not: with Adam where decoupled decay is meant; see ``L2Penalty``.

    Cost: reads weights and gradients and writes gradients once per optimizer step; proximal: reads and writes weights
    once more. No state.

    Interacts with: masks on gradients, which hold for the penalty, too, in the module's ``on_after_backward`` under
    automatic optimization, but not for the proximal step, beside ``SharpnessAwareMinimization`` nor as hooks of
    tensors: use ``exclude``.

    Deviates from the paper: λ₂/2 Σw², not λ₂ Σw², so that λ₂ equals the λ of weight decay; no rescaling afterwards.

    Args:
        l1: Strength λ₁, at least 0; 0 where None. 1e-6 to 1e-4 is usual.
        l2: Strength λ₂, at least 0; 0 where None. 1e-5 to 1e-3 is usual.
        proximal: Whether the L1 part shrinks weights after the step, to exact zeros.
        include: Globs over names of parameters that are penalized.
        exclude: Globs over names of parameters that are left out.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are left out.
        schedule: Factor of both strengths over the course of training; constant where None.

    Logs:
        ``penalty/elastic_net``, its value, and ``penalty/elastic_net_share``, its share of loss plus penalty, at the
        steps the trainer logs; proximal: ``penalty/elastic_net_zeros``, the fraction of exact zeros.

    Raises:
        SettingError: If a strength is negative or not finite, neither is given, a glob matches nothing, the optimizer
            is LBFGS, or with ``proximal=True`` has no learning rate.

    Reference:
        Hui Zou, Trevor Hastie: Regularization and Variable Selection via the Elastic Net, Journal of the Royal
        Statistical Society B 67, 2005.

    >>> ElasticNetPenalty(l1=1e-5, l2=1e-4).l2
    0.0001
    """

    tag = "elastic_net"
    usual_ranges = (Log("l1", 1e-6, 1e-3), Log("l2", 1e-6, 1e-2))

    def __init__(
        self,
        *,
        l1: float | None = None,
        l2: float | None = None,
        proximal: bool = False,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        exclude_norm_and_bias: bool = True,
        schedule: StrengthSchedule | None = None,
    ) -> None:
        if l1 is None and l2 is None:
            raise SettingError("l1 or l2 must be given; 0 switches the penalty off")
        self.l1 = 0.0 if l1 is None else l1
        self.l2 = 0.0 if l2 is None else l2
        check_range("l1", self.l1, low=0)
        check_range("l2", self.l2, low=0)
        super().__init__(
            include=include,
            exclude=exclude,
            exclude_norm_and_bias=exclude_norm_and_bias,
            schedule=schedule,
        )
        self.proximal = proximal

    @property
    @override
    def l2_strength(self) -> float:
        return self.l2

    @property
    @override
    def adds_gradient(self) -> bool:
        return self.l2 > 0 or (self.l1 > 0 and not self.proximal)

    @property
    @override
    def shrinks(self) -> bool:
        return self.proximal and self.l1 > 0

    @override
    def value(self, weights: list[Tensor]) -> Tensor:
        return elastic_net_penalty(weights, self.l1, self.l2)

    @override
    def add_gradient_(self, weights: list[Tensor], gradients: list[Tensor], factor: float | Tensor) -> None:
        l1 = 0.0 if self.shrinks else self.l1 * factor
        l2 = self.l2 * factor if self.l2 else 0.0
        add_elastic_net_gradient_(gradients, weights, l1=l1, l2=l2)

    @override
    def shrink_(self, weights: list[Tensor], factor: float | Tensor) -> None:
        soft_threshold_(weights, self.l1 * factor)
