"""Adding to gradients between backward and the optimizer's step, exactly as if the loss had contained the term."""

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_reg.settings import SettingError

__all__ = ["AccumulationWindow", "instance_suffix", "refuse_closure_optimizers"]


class AccumulationWindow:
    """How much of a penalty belongs into one optimizer step.

    Written into the loss, a penalty comes with every micro-batch, divided like the loss by the number k of
    micro-batches in a window. So a step gets n/k of it, where n is the number of backward passes since the last step:
    fewer than k in the last window of an epoch, after a resume in the middle of one, or where a training step returned
    no loss.
    """

    def __init__(self) -> None:
        self._passes = 0

    def count(self) -> None:
        """Call in ``on_after_backward``."""
        self._passes += 1

    def close(self, trainer: Trainer, optimizer: Optimizer) -> float | Tensor:
        """Returns what the penalty's gradient is to be multiplied by; call in ``on_before_optimizer_step``.

        Under manual optimization the user decides what a step is made of, so it gets the whole penalty.

        Args:
            trainer: That runs.
            optimizer: That is about to step. One that unscales by itself (a fused one under a gradient scaler) is
                handed gradients that still carry the scale, so the penalty has to carry it too.

        Returns:
            A float, 0 where there was no backward pass; or a scalar tensor on the optimizer's device where a scale
            comes in: no transfer to the host.
        """
        factor = 1.0
        if trainer.lightning_module.automatic_optimization:
            factor = self._passes / trainer.accumulate_grad_batches
        self._passes = 0
        plugin = trainer.precision_plugin
        scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
        if factor and scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            device = optimizer.param_groups[0]["params"][0].device
            scaled: Tensor = scaler.scale(torch.full((), factor, device=device))
            return scaled
        return factor


def instance_suffix(trainer: Trainer, callback: Callback) -> str:
    """Returns what tells a callback's tags from those of others of its kind: nothing where it is alone.

    Args:
        trainer: With all callbacks.
        callback: One of them.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set outside the class
    kind = [other for other in callbacks if type(other) is type(callback)]
    return f"_{kind.index(callback) + 1}" if len(kind) > 1 else ""


def refuse_closure_optimizers(trainer: Trainer, technique: str) -> None:
    """Raises if an optimizer evaluates the loss several times a step, which a change of gradients can't follow.

    Args:
        trainer: At fit start.
        technique: Named in the message.

    Raises:
        SettingError: With what to use instead.
    """
    if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
        raise SettingError(
            f"optimizer must not be LBFGS with {technique}: its line search compares losses that the penalty isn't "
            "part of; use a first-order optimizer, or write the penalty into the loss"
        )
