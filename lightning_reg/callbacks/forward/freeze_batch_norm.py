"""BatchNorm that stays as it is while the rest of a network is trained."""

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from typing_extensions import override

from lightning_reg.attach.surgery import Change, Surgery
from lightning_reg.core.wrapping import around
from lightning_reg.settings import SettingError

__all__ = ["FreezeBatchNorm"]


class FreezeBatchNorm(Surgery):
    """Keeps BatchNorm layers in evaluation mode while the rest is trained.

    What it does: the chosen layers normalize with their running statistics, which don't change, and their scale and
    shift aren't trained. Both are given back when training ends.

    When to use: fine-tuning with small batches, whose statistics are noise, or on few data, where moving statistics
    would undo what was learned. When not: training from scratch: the running statistics are then 0 and 1.

    Cost: none; cheaper than BatchNorm in training. No state.

    Interacts with: ``module.train()`` and Lightning's own switches of mode, which it overrules before every batch;
    ``ReplaceNorm``, which it must come after, and ``sync_batchnorm``, which it can't stand beside. Optimizers hold the
    frozen parameters all the same, so that training can go on without the callback.

    Args:
        affine: Whether scale and shift are frozen, too.
        include: Globs over names of modules.
        exclude: Globs over names of modules that are left out.

    Raises:
        SettingError: If a pattern matches nothing, there is no BatchNorm, one keeps no running statistics, or one is
            replaced afterwards.

    >>> FreezeBatchNorm(include=("backbone.*",)).affine
    True
    """

    suited = "BatchNorm"
    freezes_batch_norm = True

    def __init__(self, *, affine: bool = True, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> None:
        super().__init__(include=include, exclude=exclude, types=())
        self.affine = affine
        self._modes: list[tuple[nn.Module, bool]] = []
        self._frozen: list[nn.Parameter] = []

    @override
    def suits(self, module: nn.Module) -> bool:
        return isinstance(module, nn.modules.batchnorm._BatchNorm)

    @override
    def operate(self, trainer: Trainer, pl_module: LightningModule) -> list[Change]:
        changes = []
        for name, module in self.selected(pl_module).items():
            if module.running_mean is None:
                raise SettingError(
                    f"exclude must name {name}, which has no running statistics to normalize with when it is frozen"
                )
            self._modes.append((module, module.training))
            if self.affine:
                self._frozen += [each for each in module.parameters(recurse=False) if each.requires_grad]
            changes.append((f"{type(module).__name__}, frozen", name))
        self._train_frozen(False)
        # Optimizers that leave out what isn't trained would have other groups than a checkpoint without the callback.
        self.handles.append(around(pl_module, "configure_optimizers", self._configure_optimizers))
        return changes

    def _configure_optimizers(self, configure_optimizers: Callable[[], Any]) -> Any:
        self._train_frozen(True)
        try:
            return configure_optimizers()
        finally:
            self._train_frozen(False)

    def _train_frozen(self, trained: bool) -> None:
        for each in self._frozen:
            each.requires_grad_(trained)

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().attach(trainer, pl_module)
        if not {module for module, _ in self._modes} <= set(pl_module.modules()):
            raise SettingError(
                "FreezeBatchNorm must come after whatever replaces BatchNorm: put it behind ReplaceNorm, and set "
                "sync_batchnorm=False, because frozen statistics are the same everywhere"
            )

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for module, _ in self._modes:
            module.training = False  # every time: whoever switches the whole module to training means this one, too

    @override
    def release(self) -> None:
        for module, mode in self._modes:
            module.training = mode
        self._train_frozen(True)
        self._modes, self._frozen = [], []
