"""BatchNorm's statistics for averaged weights, from the inputs that modules had in training."""

from collections.abc import Iterator, Mapping

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from lightning_reg.callbacks.weights.averages.remembered_inputs import (
    Call,
    RememberedInputs,
    batch_norms,
    shapes_of,
)
from lightning_reg.core.selection import plain_name

__all__ = ["recomputed_statistics"]


def recomputed_statistics(trainer: Trainer, module: LightningModule, inputs: RememberedInputs) -> dict[str, Tensor]:
    """Recomputes BatchNorm's running statistics from remembered inputs, for the weights of a module.

    Every batch weighs the same, as in ``torch.optim.swa_utils.update_bn``. All other layers are in evaluation mode:
    dropout would change the variance.

    Args:
        module: The trainer's module or a copy of it, with the weights that the statistics are for.
        inputs: Remembered inputs of the training steps.

    Returns:
        Means, variances and counters by name, without layers that no input reached.
    """
    norms = {name: norm for name, norm in batch_norms(module).items() if name in inputs.norms}
    modes = {part: part.training for part in module.modules()}
    momenta = {norm: norm.momentum for norm in norms.values()}
    count = len(inputs.steps)
    if trainer.world_size > 1:  # synchronized layers wait for one another
        least = trainer.strategy.reduce(torch.tensor(count, device=trainer.strategy.root_device), reduce_op="min")
        count = int(torch.as_tensor(least))
    if not norms or not count:
        return {}
    steps, device = list(inputs.steps)[-count:], trainer.strategy.root_device
    try:
        module.eval()
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            isolate_rng(),
            torch.compiler.set_stance("force_eager"),
            trainer.precision_plugin.forward_context(),
        ):
            if any(call.chained for call in steps[0]):
                _repeat(module, steps[0], device, as_in_training=True)
            for norm in norms.values():
                norm.training = True
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative mean
            for calls in steps:
                _repeat(module, calls, device)
        return dict(_statistics(trainer, norms))
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for part, training in modes.items():
            part.training = training


def _repeat(module: nn.Module, calls: list[Call], device: torch.device, *, as_in_training: bool = False) -> None:
    """Repeats the calls of a step.

    Args:
        as_in_training: Whether what returns something else in evaluation is set to training mode, as another network
            takes what it returned then; but for its layers: dropout stays off.
    """
    outputs: list[list[object]] = []
    for call in calls:
        leaves, spec = tree_flatten((call.args, call.kwargs))
        for index in call.moved:
            leaves[index] = leaves[index].to(device, non_blocking=True)
        for index, (source, number) in call.chained.items():
            leaves[index] = outputs[source][number]
        args, kwargs = tree_unflatten(leaves, spec)
        part = module.get_submodule(call.name)
        output = part(*args, **kwargs)
        if as_in_training and call.shapes and shapes_of(output) != call.shapes:
            for inner in part.modules():
                inner.training = inner is part or any(True for _ in inner.children())
            output = part(*args, **kwargs)
        outputs.append(tree_leaves(output))


def _statistics(trainer: Trainer, norms: Mapping[str, _BatchNorm]) -> Iterator[tuple[str, Tensor]]:
    for name, norm in norms.items():
        if not norm.num_batches_tracked:
            continue
        for key, buffer in norm.named_buffers(recurse=False):
            value = buffer.clone()
            if trainer.world_size > 1 and value.is_floating_point():
                value = torch.as_tensor(trainer.strategy.reduce(value, reduce_op="mean"))
            yield plain_name(f"{name}.{key}" if name else key), value
