"""Gradient centralization."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from lightning_reg.core.facts import Place, Position
from lightning_reg.core.gradients import gradient_values, refuse_sharded
from lightning_reg.core.selection import Selection, as_patterns
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run, Step
from lightning_reg.core.technique import Technique
from lightning_reg.functional.gradient.centralization import centralize_

__all__ = ["GradientCentralization"]


class GradientCentralization(Technique):
    """Takes its mean away from the gradient of every unit's weights, before each optimizer step.

    What it does: keeps the sum of the weights that lead into a unit at its initial value, which smooths the loss and
    bounds weights and activations. Penalties are in the gradient already, as they would be in the loss.

    When to use: with convolutional networks. When not: on layers whose inputs have a mean that carries information,
    such as a regression head; exclude them.

    Cost: reads gradients twice and writes them once per optimizer step. No state.

    Args:
        include: Globs over names of parameters that are centralized.
        exclude: Globs over names of parameters that are left out.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are left out; vectors always
            are.

    Raises:
        SettingError: If a glob matches nothing, nothing selected has two dimensions, weights are sharded, or the
            optimizer is LBFGS.

    Reference:
        Hongwei Yong, Jianqiang Huang, Xiansheng Hua, Lei Zhang: Gradient Centralization: A New Optimization Technique
        for Deep Neural Networks, ECCV 2020, arXiv:2004.01461.

    >>> GradientCentralization(exclude=("head.*",)).exclude
    ('head.*',)
    """

    place = Place.GRADIENT
    position = Position.CENTRALIZATION
    changes_gradients = True

    def __init__(
        self,
        *,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        exclude_norm_and_bias: bool = True,
    ) -> None:
        super().__init__()
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.exclude_norm_and_bias = exclude_norm_and_bias

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return CentralizationSession(self, run)


@dataclass(eq=False)
class CentralizationSession(Session[GradientCentralization]):
    """One fit of gradient centralization."""

    selection: Selection = field(init=False)

    def __post_init__(self) -> None:
        technique = self.technique
        self.selection = Selection.by(technique, self.run.module, by_unit=True)
        refuse_sharded(self.selection.names, type(technique).__name__)

    @override
    def before_step(self, step: Step) -> None:
        chosen = [parameter for parameter in self.selection.of(step.parameters) if parameter.grad is not None]
        gradients = self.selection.units([gradient_values(parameter) for parameter in chosen], chosen)
        # A single weight is its own mean, and would never learn.
        centralize_([gradient for gradient in gradients if gradient.numel() > len(gradient)])
