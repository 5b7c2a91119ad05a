"""Soft orthogonality of weight matrices."""

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.gradient.weight_penalty import WeightPenalty
from lightning_reg.core.facts import Log
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.functional.penalties import add_orthogonal_gradient_, orthogonal_penalty
from lightning_reg.settings import check_range

__all__ = ["OrthogonalPenalty"]


class OrthogonalPenalty(WeightPenalty):
    """Pulls the rows of every weight matrix toward being orthonormal: λ ‖W Wᵀ − I‖² joins the loss.

    What it does: adds 4λ (W Wᵀ − I) W to the gradients before every optimizer step, without a graph; the filters of a
    convolution are rows, too. Where a matrix has more rows than columns it is the columns that become orthonormal.

    When to use: in deep or recurrent networks, to keep signals and gradients at their length; against filters that
    duplicate one another. When not: together with weight decay on the same weights, which pulls the other way.

    Interacts with: stacked matrices, such as the in_proj_weight of an attention or the gates of a recurrent layer: they
    are taken as one, and so made orthogonal to each other; exclude them if that isn't meant.

    Cost: two matrix products a weight matrix and optimizer step: for (rows × columns), 4 · rows · columns ·
    min(rows, columns) operations. No state.

    Deviates from the paper: none of its spectral or mutual-coherence variants; its soft orthogonality alone.

    Args:
        weight: Strength λ, at least 0; 1e-4 to 1e-2 is usual.
        include: Globs over parameter names that are penalized.
        exclude: Globs over parameter names that are not.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are spared.
        schedule: What the strength is multiplied by as training goes on; constant where None.

    Logs:
        ``penalty/orthogonal``, its value, and ``penalty/orthogonal_share``, its share of loss plus penalty, at the
        steps the trainer logs.

    Raises:
        SettingError: If ``weight`` is negative or not finite, a glob matches nothing, nothing selected has two
            dimensions, weights are sharded, or the optimizer is LBFGS.

    Reference:
        Nitin Bansal, Xiaohan Chen, Zhangyang Wang: Can We Gain More from Orthogonality Regularizations in Training Deep
        CNNs?, NeurIPS 2018, arXiv:1810.09102.

    >>> OrthogonalPenalty(weight=1e-3).weight
    0.001
    """

    tag = "orthogonal"
    usual_ranges = (Log("weight", 1e-4, 1e-2),)
    by_unit = True

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
    def adds_gradient(self) -> bool:
        return self.weight > 0

    @override
    def value(self, weights: list[Tensor]) -> Tensor:
        return orthogonal_penalty(weights, self.weight)

    @override
    def add_gradient_(self, weights: list[Tensor], gradients: list[Tensor], factor: float | Tensor) -> None:
        add_orthogonal_gradient_(gradients, weights, self.weight * factor)
