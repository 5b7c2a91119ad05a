"""Every technique, and what a textbook would write for it. A technique that isn't here fails the suite."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_reg.callbacks import BestWeightsEarlyStopping, L2Penalty


def no_penalty(_: nn.Module) -> float:
    return 0.0


@dataclass
class Technique:
    """How to attach it, and what it means by hand.

    Attributes:
        attach: Makes the callback.
        idle: Makes it with a strength at which it does nothing.
        penalty: The term of the loss.
        final_epoch: From the validation losses to the epoch whose weights remain.
    """

    attach: Callable[[], Callback]
    idle: Callable[[], Callback]
    penalty: Callable[[nn.Module], torch.Tensor | float] = no_penalty
    final_epoch: Callable[[list[float]], int] = lambda losses: len(losses) - 1


def half_squares(network: nn.Module) -> torch.Tensor:
    return 0.05 / 2 * sum((layer.weight**2).sum() for layer in network if isinstance(layer, nn.Linear))


TECHNIQUES = {
    "L2Penalty": Technique(
        attach=lambda: L2Penalty(weight=0.05),
        idle=lambda: L2Penalty(weight=0.0),
        penalty=half_squares,
    ),
    "BestWeightsEarlyStopping": Technique(
        attach=lambda: BestWeightsEarlyStopping("val_loss", patience=100),
        idle=lambda: BestWeightsEarlyStopping("train_loss", patience=100, restore_best_weights=False),
        final_epoch=lambda losses: min(range(len(losses)), key=losses.__getitem__),
    ),
}
