"""Penalties of what leads into a unit, or out of it, together."""

from collections.abc import Sequence
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.attach.gradients import dense_gradient
from lightning_reg.attach.schedules import StrengthSchedule
from lightning_reg.attach.selection import check_units, unit_dims
from lightning_reg.attach.weight_penalty import WeightPenalty

__all__ = ["UnitPenalty"]


class UnitPenalty(WeightPenalty):
    """A penalty that sees weights unit by unit, so of matrices and filters alone, and whole ones.

    Args:
        group: Which weights make up a unit: those that lead into it, or those that lead out of it.
        include: Globs over parameter names that are penalised.
        exclude: Globs over parameter names that are not.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are spared.
        schedule: What the strength is multiplied by as training goes on.
    """

    elementwise = False
    matrices_only = True

    def __init__(
        self,
        *,
        group: Literal["output", "input"] = "output",
        include: Sequence[str],
        exclude: Sequence[str],
        exclude_norm_and_bias: bool,
        schedule: StrengthSchedule | None,
    ) -> None:
        super().__init__(
            include=include, exclude=exclude, exclude_norm_and_bias=exclude_norm_and_bias, schedule=schedule
        )
        self.group = group
        self._dims: dict[nn.Parameter, int] = {}

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().attach(trainer, pl_module)
        self._dims = unit_dims(pl_module, self.group)
        check_units({name: parameter for parameter, name in self.names.items()}, self._dims)

    @override
    def release(self) -> None:
        super().release()
        self._dims = {}

    def units(self, tensors: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Returns views whose first dimension counts the units.

        Args:
            tensors: The parameters, or what has their shapes.
            parameters: Whose they are.
        """
        pairs = zip(tensors, parameters, strict=True)
        return [tensor.detach().movedim(self._dims[parameter], 0) for tensor, parameter in pairs]

    def gradient_units(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Returns the same views of the gradients.

        Args:
            parameters: Each with a gradient.
        """
        return self.units([dense_gradient(each) for each in parameters], parameters)
