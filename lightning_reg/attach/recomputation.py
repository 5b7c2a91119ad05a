"""BatchNorm's statistics for weights that nobody has trained with, from forward passes over the training data."""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader
from torchmetrics import Metric

from lightning_reg.core.wrapping import around, inside
from lightning_reg.settings import SettingError

__all__ = ["check_recomputable", "recompute_statistics", "trained_norms"]


def trained_norms(module: nn.Module) -> list[_BatchNorm]:
    """Returns the BatchNorm layers whose running statistics follow the data at this moment: frozen ones don't.

    Args:
        module: In training mode.
    """
    return [
        each
        for each in module.modules()
        if isinstance(each, _BatchNorm) and each.training and each.running_mean is not None
    ]


def check_recomputable(trainer: Trainer, pl_module: LightningModule, technique: str) -> None:
    """Raises if training data can't be passed through the module without training it.

    Args:
        trainer: When training starts.
        pl_module: The module.
        technique: Named in the message.

    Raises:
        SettingError: With what to do instead.
    """
    step = pl_module.training_step
    if not pl_module.automatic_optimization or is_param_in_hook_signature(step, "dataloader_iter", explicit=True):
        raise SettingError(
            f"buffers must be 'copy' or 'average' with {technique} where the training step itself optimizes or fetches "
            "batches, but is 'recompute'"
        )
    if math.isinf(trainer.num_training_batches):
        raise SettingError(
            f"buffers must be 'copy' or 'average' with {technique} where an epoch has no end, but is 'recompute'; or "
            "set limit_train_batches of the Trainer"
        )


def recompute_statistics(trainer: Trainer, pl_module: LightningModule, norms: Iterable[_BatchNorm]) -> None:
    """Replaces running means and variances by those of one epoch of training batches, with the weights as they are.

    Every batch weighs the same, as in ``torch.optim.swa_utils.update_bn``. All else is in evaluation mode: dropout
    would change the variance. The batches go through ``training_step``, because not every module has a ``forward``;
    nothing is logged, and metrics count nothing.

    Args:
        trainer: That fits.
        pl_module: With the weights that the statistics are for.
        norms: The layers that get them.
    """
    norms = list(norms)
    if not norms:
        return
    modes = {each: each.training for each in pl_module.modules()}
    momenta = {each: each.momentum for each in norms}
    stage = trainer.state.stage
    try:
        pl_module.eval()
        trainer.validating = True  # a data module that mixes batches does it in training
        for each in norms:
            each.training = True
            each.reset_running_stats()
            each.momentum = None  # a cumulative mean
        with torch.inference_mode(False), torch.no_grad(), isolate_rng(), _unnoticed(pl_module):
            for batch, index in _batches(trainer):
                _forward(trainer, pl_module, batch, index)
            for each in norms:
                _mean_over_processes(trainer, each)
    finally:
        trainer.state.stage = stage
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for part, training in modes.items():
            part.training = training


def _batches(trainer: Trainer) -> Iterator[tuple[Any, int]]:
    """Those of an epoch, by iterators of their own: the fit may be in the middle of its epoch."""
    combined = trainer.fit_loop._combined_loader
    if combined is None:
        return
    loader = CombinedLoader(tree_map(_beside, combined.iterables), combined._mode)
    iter(loader)
    for batch, index, _ in itertools.islice(loader, int(trainer.num_training_batches)):
        yield batch, index


def _beside(loader: Any) -> Any:
    if not isinstance(loader, DataLoader):
        return loader
    other = copy.copy(loader)
    other._iterator = None  # workers that persist are in the middle of something else
    return other


def _forward(trainer: Trainer, pl_module: LightningModule, batch: Any, index: int) -> None:
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
    step = inside(pl_module, "training_step")  # loss terms and mixed batches are for training
    takes_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
    with trainer.precision_plugin.forward_context():
        step(*((batch, index) if takes_index else (batch,)))


def _mean_over_processes(trainer: Trainer, norm: _BatchNorm) -> None:
    if trainer.world_size > 1:
        for buffer in (norm.running_mean, norm.running_var):
            if isinstance(buffer, Tensor):
                reduced = trainer.strategy.reduce(buffer, reduce_op="mean")
                buffer.copy_(torch.as_tensor(reduced))


@contextmanager
def _unnoticed(pl_module: LightningModule) -> Iterator[None]:
    """Logs nothing, and leaves metrics as they were."""
    metrics = [each for each in pl_module.modules() if isinstance(each, Metric)]
    before = [(each._copy_state_dict(), each._update_count, each._computed, each._forward_cache) for each in metrics]
    muted = around(pl_module, "log", lambda *_, **__: None)
    try:
        yield
    finally:
        muted.remove()
        for metric, (state, count, computed, last) in zip(metrics, before, strict=True):
            for name, value in state.items():
                setattr(metric, name, value)
            metric._update_count, metric._computed, metric._forward_cache = count, computed, last
