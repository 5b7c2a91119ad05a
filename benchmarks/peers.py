"""Alternatives to techniques that a user would write, as callbacks."""

import importlib
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.workloads import L1, L2, Workload

__all__ = [
    "ClipGradNorm",
    "ForeachElasticNet",
    "HookedInFourPasses",
    "HookedOneByOne",
    "Textbook",
    "TimmAdaptive",
    "TimmEma",
]


class Textbook(Callback):
    """The penalty as in a textbook: added to the loss, with gradients by autograd."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Enables the penalty for one step."""
        if isinstance(pl_module, Workload):
            pl_module.penalty = True


class ForeachElasticNet(Callback):
    """The penalty's gradient by plain foreach calls."""

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Adds the penalty's gradient."""
        weights: list[Tensor] = [parameter for parameter in pl_module.parameters() if parameter.ndim > 1]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        torch._foreach_add_(gradients, torch._foreach_sign(weights), alpha=L1)
        torch._foreach_add_(gradients, weights, alpha=L2)


class ClipGradNorm(Callback):
    """torch's clipping, called by hand."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Clips."""
        nn.utils.clip_grad_norm_(pl_module.parameters(), 1e-3)


class TimmAdaptive(Callback):
    """timm's adaptive clipping, called by hand."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Clips."""
        importlib.import_module("timm.utils.agc").adaptive_clip_grad(list(pl_module.parameters()))


class TimmEma(Callback):
    """timm's average, called by hand."""

    def __init__(self) -> None:
        self.average: Any = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Updates the average."""
        if isinstance(pl_module, Workload):
            if self.average is None:
                self.average = importlib.import_module("timm.utils").ModelEmaV3(pl_module.network, decay=0.999)
            self.average.update(pl_module.network)


class HookedOneByOne(Callback):
    """Hooks as users write them: mean, standard deviation and share of zeros, each read by ``.item()``."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Registers the hooks."""
        leaves = [module for module in pl_module.modules() if not list(module.children())]
        self.handles = [leaf.register_forward_hook(self.look) for leaf in leaves]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Removes the hooks."""
        for handle in self.handles:
            handle.remove()

    @torch.no_grad()
    def look(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Computes the statistics."""
        self.found = output.mean().item(), output.std().item(), (output == 0).float().mean().item()


class HookedInFourPasses(HookedOneByOne):
    """Hooks that compute each statistic and a histogram by one operation, without a host sync."""

    @torch.no_grad()
    def look(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Computes the statistics."""
        norm, nonzero = torch.linalg.vector_norm(output), torch.count_nonzero(output)
        self.kept = output.sum(), norm, nonzero, torch.histc(output, 64, -10, 10)
