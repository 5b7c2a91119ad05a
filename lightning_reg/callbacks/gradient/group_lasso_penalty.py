"""Group lasso: a penalty that switches off whole units."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.gradient.weight_penalty import WeightPenalty
from lightning_reg.core.facts import Log
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.functional.gradient.penalties import add_group_lasso_gradient_, group_lasso_penalty
from lightning_reg.functional.weights.proximal import group_soft_threshold_
from lightning_reg.settings import check_choice, check_range

__all__ = ["GroupLassoPenalty"]


class GroupLassoPenalty(WeightPenalty):
    """Pulls the weights of a whole unit toward zero together: λ Σ √n ‖w‖ over groups of n weights joins the loss.

    What it does: adds λ √n w/‖w‖ to the gradients before every optimizer step, without a graph. With
    ``proximal=True`` every group is instead shortened after the step by lr · λ √n, so that units which bring little
    become exactly zero and can be cut out.

    When to use: to find out how many units or channels a network needs. When not: for sparse single weights; that is
    ``L1Penalty``.

    A unit is one index of a weight's output (or input) dimension, whatever the weight is: a gate of a recurrent layer,
    a row of an attention's stacked projections. Name the weights where this isn't meant in ``exclude``.

    Cost: reads weights twice and gradients once per optimizer step. No state.

    Args:
        weight: Strength λ, at least 0; 1e-5 to 1e-3 is usual.
        group: ``"output"``: a group is the weights that lead into a unit, a row of a linear layer or a filter;
            ``"input"``: the weights that lead out of a unit, a column or an input channel, which selects features in
            the first layer.
        proximal: Whether groups are shrunk after the step, to exact zeros, rather than pulled through the gradient.
        include: Globs over names of parameters that are penalized.
        exclude: Globs over names of parameters that are left out.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are left out.
        schedule: Factor of the strength over the course of training; constant where None.

    Logs:
        ``penalty/group_lasso``, its value, and ``penalty/group_lasso_share``, its share of loss plus penalty, at the
        steps the trainer logs; proximal: ``penalty/group_lasso_zeros``, the fraction of exact zeros.

    Raises:
        SettingError: If ``weight`` is negative or not finite, a glob matches nothing, nothing selected has two
            dimensions, weights are sharded, the optimizer is LBFGS, or with ``proximal=True`` has no learning rate.

    Reference:
        Ming Yuan, Yi Lin: Model Selection and Estimation in Regression with Grouped Variables, Journal of the Royal
        Statistical Society B 68, 2006; for networks: Wei Wen et al.: Learning Structured Sparsity in Deep Neural
        Networks, NeurIPS 2016, arXiv:1608.03665.

    >>> GroupLassoPenalty(weight=1e-4, group="input").group
    'input'
    """

    tag = "group_lasso"
    usual_ranges = (Log("weight", 1e-5, 1e-3),)
    by_unit = True

    def __init__(
        self,
        *,
        weight: float,
        group: Literal["output", "input"] = "output",
        proximal: bool = False,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        exclude_norm_and_bias: bool = True,
        schedule: StrengthSchedule | None = None,
    ) -> None:
        check_range("weight", weight, low=0)
        check_choice("group", group, ("output", "input"))
        super().__init__(
            group=group,
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
        return group_lasso_penalty(weights, self.weight)

    @override
    def add_gradient_(self, weights: list[Tensor], gradients: list[Tensor], factor: float | Tensor) -> None:
        add_group_lasso_gradient_(gradients, weights, self.weight * factor)

    @override
    def shrink_(self, weights: list[Tensor], factor: float | Tensor) -> None:
        group_soft_threshold_(weights, self.weight * factor)
