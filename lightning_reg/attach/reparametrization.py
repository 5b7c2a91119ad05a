"""Weights of somebody else's layers that are computed from others, for good."""

from abc import abstractmethod
from typing import ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from typing_extensions import override

from lightning_reg.attach.surgery import Change, Surgery
from lightning_reg.attach.technique import callbacks_of
from lightning_reg.nn.drop_connect import DropConnect
from lightning_reg.settings import SettingError

__all__ = ["Reparametrization"]


class Reparametrization(Surgery):
    """Parametrizes the ``weight`` of layers, which must have two dimensions or more.

    Args:
        include: Globs over names of layers.
        exclude: Globs over names of layers that are left out.
        types: Classes of layers, or their names; those of ``by_default`` where empty.
    """

    lasts = True
    by_default: ClassVar[tuple[type[nn.Module], ...]]
    parametrization: ClassVar[type[nn.Module]]
    adjective: ClassVar[str]

    @abstractmethod
    def reparametrize(self, layer: nn.Module, name: str) -> None:
        """Registers the parametrization.

        Args:
            layer: Whose weight.
            name: Of the layer.
        """

    @override
    def suits(self, module: nn.Module) -> bool:
        return bool(self.types) or isinstance(module, self.by_default)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        for each in callbacks_of(trainer):
            if isinstance(each, (StochasticWeightAveraging, WeightAveraging)):
                raise SettingError(
                    f"callbacks must not have a {type(each).__name__} with {type(self).__name__}: it copies the module "
                    "before its weights are reparametrized"
                )

    @override
    def operate(self, trainer: Trainer, pl_module: LightningModule) -> list[Change]:
        chosen = {name: each for name, each in self.selected(pl_module).items() if not self._is_done(each)}
        for name, layer in chosen.items():
            self._check(name, layer)
        changes = [(f"{type(layer).__name__}, {self.adjective}", name) for name, layer in chosen.items()]
        for name, layer in chosen.items():
            self.reparametrize(layer, name)
        return changes

    def _is_done(self, layer: nn.Module) -> bool:
        if not is_parametrized(layer, "weight"):
            return False
        steps = layer.parametrizations["weight"]  # type: ignore[index]
        return any(isinstance(each, self.parametrization) for each in steps)

    def _check(self, name: str, layer: nn.Module) -> None:
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2:
            shape = tuple(weight.shape) if isinstance(weight, Tensor) else "none"
            raise SettingError(
                f"include must name layers whose weight has two dimensions or more, but {name} has {shape}"
            )
        if isinstance(layer, DropConnect):
            raise SettingError(
                f"exclude must name {name} in InsertDropConnect or in {type(self).__name__}: dropped weights are no "
                f"longer {self.adjective}"
            )
