"""Adding to gradients between backward and the optimizer's step, exactly as if the loss had contained the term."""

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_reg.settings import SettingError

__all__ = ["gradient_factor", "refuse_closure_optimizers"]


def gradient_factor(trainer: Trainer, optimizer: Optimizer) -> float | Tensor:
    """Returns what a penalty's gradient has to be multiplied by in ``on_before_optimizer_step``.

    1, but for two cases. With gradient accumulation every micro-batch brings 1/k of the penalty, so a last window of
    fewer than k micro-batches brings less than the whole. And under a gradient scaler, optimizers that unscale by
    themselves (fused ones) are handed gradients that still carry the scale.

    Args:
        trainer: That is in ``on_before_optimizer_step``.
        optimizer: That is about to step.

    Returns:
        A float, or a scalar tensor on the scaler's device where a scale comes in: no transfer to the host.
    """
    factor = 1.0
    if trainer.lightning_module.automatic_optimization:
        window = trainer.accumulate_grad_batches
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        factor = (ready % window or window) / window
    plugin = trainer.precision_plugin
    scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        device = optimizer.param_groups[0]["params"][0].device
        scaled: Tensor = scaler.scale(torch.full((), factor, device=device))
        return scaled
    return factor


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
