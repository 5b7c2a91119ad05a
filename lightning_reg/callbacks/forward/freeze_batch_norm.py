"""BatchNorm that stays as it is while the rest of a network is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn
from typing_extensions import override

from lightning_reg.callbacks.forward.surgery import Surgery, SurgerySession, refuse_lazy
from lightning_reg.core.step import Run
from lightning_reg.settings import SettingError

__all__ = ["FreezeBatchNorm"]


class FreezeBatchNorm(Surgery):
    """Keeps BatchNorm layers in evaluation mode while the rest is trained.

    What it does: the chosen layers normalize with their running statistics, which don't change, and their scale and
    shift aren't trained, also where they are unfrozen in the course of training. When it ends, the layers are as they
    were.

    When to use: fine-tuning with small batches, whose statistics are noise, or on few data, where moving statistics
    would undo what was learned. When not: training from scratch: the running statistics are then 0 and 1.

    Cost: none; cheaper than BatchNorm in training. No state.

    Interacts with: ``module.train()``, which leaves these layers in evaluation mode during the run, and Lightning's own
    switches of mode, which it overrules before every batch; ``ReplaceNorm``, which it must come after, and
    ``sync_batchnorm``, which it can't be combined with. Optimizers hold the frozen parameters all the same, so that
    training can go on without the callback.

    Args:
        affine: Whether scale and shift are frozen, too.
        include: Globs over names of modules.
        exclude: Globs over names of modules that are left out.

    Raises:
        SettingError: If a pattern matches nothing, there is no BatchNorm, one keeps no running statistics, is lazy
            and has not run yet, or is replaced afterwards.

    >>> FreezeBatchNorm(include=("backbone.*",)).affine
    True
    """

    suited = "BatchNorm"
    by_default = (nn.modules.batchnorm._BatchNorm,)
    freezes_batch_norm = True

    def __init__(self, *, affine: bool = True, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> None:
        super().__init__(include=include, exclude=exclude, types=())
        self.affine = affine

    @override
    def new_session(self, run: Run) -> SurgerySession:
        session = FrozenSession(self, run)
        for name, module in self.selected(run.module).items():
            refuse_lazy(name, module)
            if module.running_mean is None:
                raise SettingError(
                    f"exclude must name {name}, which has no running statistics to normalize with when it is frozen"
                )
            session.modes[module] = module.training
            run.around(module, "train", partial(session.switch, module))  # a step may call train() in its middle
            session.changes.append((f"{type(module).__name__}, frozen", name))
        session.freeze()
        # Optimizers that leave out frozen parameters would have other groups than a checkpoint without the callback.
        run.around(run.module, "configure_optimizers", session.configure_optimizers)
        return session


@dataclass(eq=False)
class FrozenSession(SurgerySession):
    """One run with frozen layers, which are unfrozen when it ends.

    Attributes:
        modes: Frozen layers, each with whether it would be in training mode.
        frozen: Parameters of these layers that were trainable, or that others have made so since.
    """

    technique: FreezeBatchNorm
    modes: dict[nn.Module, bool] = field(default_factory=dict)
    frozen: set[nn.Parameter] = field(default_factory=set)

    def freeze(self) -> None:
        """Freezes the layers' parameters that are trainable now."""
        if self.technique.affine:
            own = (parameter for module in self.modes for parameter in module.parameters(recurse=False))
            self.frozen |= {parameter for parameter in own if parameter.requires_grad}
            self.train(False)

    def switch(self, module: nn.Module, train: Callable[..., nn.Module], mode: bool = True) -> nn.Module:
        """Switches the mode of a layer's children, if it has any, and leaves the layer in evaluation mode."""
        train(mode)
        module.training = False
        if self.run.trainer.training:  # Lightning's own switches of a validation are taken back
            self.modes[module] = mode
        return module

    def train(self, trained: bool) -> None:
        """Sets ``requires_grad`` of the frozen parameters."""
        for parameter in self.frozen:
            parameter.requires_grad_(trained)

    def configure_optimizers(self, configure_optimizers: Callable[[], Any]) -> Any:
        """Makes optimizers that include the frozen parameters."""
        self.train(True)
        try:
            return configure_optimizers()
        finally:
            self.train(False)

    @override
    def fit_starts(self) -> None:
        super().fit_starts()
        if not self.modes.keys() <= set(self.run.module.modules()):
            raise SettingError(
                "FreezeBatchNorm must come after whatever replaces BatchNorm: put it behind ReplaceNorm, and set "
                "sync_batchnorm=False, because frozen statistics are the same everywhere"
            )

    @override
    def batch_starts(self, batch_idx: int) -> None:
        for module in self.modes:
            module.training = False  # every time: Lightning restores modes without calling train()
        self.freeze()  # every time: whoever unfreezes a backbone unfreezes its norms, too

    @override
    def ends(self, exception: BaseException | None) -> None:
        for module, mode in self.modes.items():
            module.training = mode
        self.train(True)
