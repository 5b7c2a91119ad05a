"""Gradients without their mean."""

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.attach.gradients import parameters_of, refuse_sharded
from lightning_reg.attach.selection import as_patterns, check_units, select_parameters, unit_dims
from lightning_reg.attach.technique import GradientTechnique, Position
from lightning_reg.functional.gradients import centralize_

__all__ = ["GradientCentralization"]


class GradientCentralization(GradientTechnique):
    """Takes its mean away from the gradient of every unit's weights, before each optimizer step.

    What it does: keeps the sum of the weights that lead into a unit where it was at the start, which smooths the loss
    and bounds weights and activations. Penalties are in the gradient already, as they would be in the loss.

    When to use: with convolutional networks. When not: on layers whose inputs have a mean that carries information,
    such as a regression head; exclude them.

    Cost: reads gradients twice and writes them once per optimizer step. No state.

    Args:
        include: Globs over parameter names that are centralized.
        exclude: Globs over parameter names that are not.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are spared; vectors are
            anyway.

    Raises:
        SettingError: If a glob matches nothing, nothing selected has two dimensions, weights are sharded, or the
            optimizer is LBFGS.

    Reference:
        Hongwei Yong, Jianqiang Huang, Xiansheng Hua, Lei Zhang: Gradient Centralization: A New Optimization Technique
        for Deep Neural Networks, ECCV 2020, arXiv:2004.01461.

    >>> GradientCentralization(exclude=("head.*",)).exclude
    ('head.*',)
    """

    position = Position.CENTRALIZATION

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
        self._dims: dict[nn.Parameter, int] = {}

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        selected = select_parameters(
            pl_module,
            include=self.include,
            exclude=self.exclude,
            exclude_norm_and_bias=self.exclude_norm_and_bias,
            matrices_only=True,
        )
        refuse_sharded(selected, type(self).__name__)
        dims = unit_dims(pl_module)
        check_units(selected, dims)
        # The mean of a single weight is the weight itself, which would never learn.
        self._dims = {each: dims[each] for each in selected.values() if each.numel() > each.shape[dims[each]]}

    @override
    def release(self) -> None:
        self._dims = {}

    @override
    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        centralize_(
            [
                each.grad.movedim(self._dims[each], 0)
                for each in parameters_of(optimizer)
                if each in self._dims and each.grad is not None and not each.grad.is_sparse
            ]
        )
