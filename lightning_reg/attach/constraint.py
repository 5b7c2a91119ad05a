"""What is enforced on weights after every step of an optimizer."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.attach.gradients import local, refuse_sharded
from lightning_reg.attach.selection import as_patterns, check_units, select_parameters, unit_dims
from lightning_reg.attach.technique import Position, StepTechnique

__all__ = ["Constraint"]


class Constraint(StepTechnique):
    """Projects weights onto what is allowed, in place, after each step of the optimizer that they belong to.

    Args:
        include: Globs over parameter names that are constrained.
        exclude: Globs over parameter names that are not.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are spared.
        group: Which weights make up a unit: those that lead into it, or those that lead out of it.
    """

    position = Position.CONSTRAINT
    by_unit: ClassVar[bool] = True  # else every weight stands for itself

    def __init__(
        self, *, include: Sequence[str], exclude: Sequence[str], exclude_norm_and_bias: bool, group: str = "output"
    ) -> None:
        super().__init__()
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.exclude_norm_and_bias = exclude_norm_and_bias
        self.group = group
        self._dims: dict[nn.Parameter, int] = {}

    @abstractmethod
    def project_(self, units: list[Tensor]) -> None:
        """Projects.

        Args:
            units: Weights; where the constraint goes by unit, their first dimension counts the units.
        """

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        selected = select_parameters(
            pl_module,
            include=self.include,
            exclude=self.exclude,
            exclude_norm_and_bias=self.exclude_norm_and_bias,
            matrices_only=self.by_unit,
        )
        dims = unit_dims(pl_module, self.group)
        if self.by_unit:
            refuse_sharded(selected, type(self).__name__)
            check_units(selected, dims)
        self._dims = {parameter: dims.get(parameter, 0) for parameter in selected.values()}

    @override
    def release(self) -> None:
        self._dims = {}

    @override
    def after_step(self, optimizer: Optimizer) -> None:
        stepped = (each for group in optimizer.param_groups for each in group["params"])
        units = [
            local(each).movedim(self._dims[each], 0) if self.by_unit else local(each)
            for each in stepped
            if each in self._dims and each.requires_grad
        ]
        if units:
            self.project_(units)
