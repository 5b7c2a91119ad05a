"""Filters with mean 0 and variance 1."""

from collections.abc import Sequence

from torch import nn
from torch.nn.utils.parametrize import register_parametrization
from typing_extensions import override

from lightning_reg.callbacks.forward.reparametrization import reparametrized
from lightning_reg.callbacks.forward.surgery import Surgery, SurgerySession
from lightning_reg.core.step import Run
from lightning_reg.nn.layers import normalization as layers
from lightning_reg.settings import SettingError, check_range

__all__ = ["WeightStandardization"]


class WeightStandardization(Surgery):
    """Standardizes the filters of an existing network's convolutions: mean 0, variance 1 over what leads into a unit.

    What it does: the chosen layers compute with standardized weights. The module keeps it after training: it is part of
    the function that was learned. Checkpoints hold the parametrization's own names and load with the callback; to have
    plain weights again, call ``torch.nn.utils.parametrize.remove_parametrizations``.

    When to use: together with GroupNorm where batches are too small for BatchNorm (see ``ReplaceNorm``). When not:
    without a normalization behind the layer, because the scale of its outputs is then that of the fan-in.

    Cost: two passes over the chosen weights in the forward and in the backward pass. No state.

    Interacts with: penalties and decay, which act on the plain weights, and so change only the step size.
    ``init="lsuv"`` and ``InsertDropConnect`` can't be combined with it.

    Args:
        include: Globs over names of layers.
        exclude: Globs over names of layers that are left out.
        types: Classes of layers, or their names; convolutions where empty.
        eps: Constant added to the variance, positive.

    Raises:
        SettingError: If a setting is out of its range, a pattern matches nothing, a weight has one dimension, or a
            callback drops weights of the layer or averages copies of the module.

    Reference:
        Siyuan Qiao et al.: Micro-Batch Training with Batch-Channel Normalization and Weight Standardization, 2019,
        arXiv:1903.10520.

    >>> WeightStandardization(include=("backbone.*",)).eps
    1e-05
    """

    suited = "Conv"
    by_default = (nn.modules.conv._ConvNd,)
    lasts = True
    renames_weights = True

    def __init__(
        self,
        *,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        types: Sequence[str | type] = (),
        eps: float = 1e-5,
    ) -> None:
        check_range("eps", eps, low=0, low_open=True)
        super().__init__(include=include, exclude=exclude, types=types)
        self.eps = eps

    @override
    def new_session(self, run: Run) -> SurgerySession:
        kind = layers.StandardizedWeight
        return reparametrized(self, run, self._register, parametrization=kind, adjective="standardized")

    def _register(self, layer: nn.Module, name: str) -> None:
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        groups = int(getattr(layer, "groups", 1)) if transposed else 1
        standardization = layers.StandardizedWeight(dim=int(transposed), groups=groups, eps=self.eps)
        try:
            register_parametrization(layer, "weight", standardization)
        except SettingError as error:
            raise SettingError(f"exclude must name {name}: {error}") from error
