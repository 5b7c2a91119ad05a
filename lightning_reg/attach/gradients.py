"""Reading and writing gradients between backward and the optimizer's step, exactly as a loop by hand would."""

from collections.abc import Iterable, Sequence

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.amp.grad_scaler import OptState
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from lightning_reg.functional.gradients import norms_of
from lightning_reg.settings import SettingError

__all__ = [
    "AccumulationWindow",
    "any_gradient",
    "dense_gradient",
    "gradient_norms",
    "gradient_scale",
    "gradient_values",
    "local",
    "optimizer_index",
    "optimizer_name",
    "parameters_of",
    "refuse_sharded",
    "same_parameters",
    "scaler_scale",
    "to_shard",
    "unscaled_loss",
    "whole",
]


class AccumulationWindow:
    """How much of a penalty belongs into one optimizer step.

    Written into the loss, a penalty comes with every micro-batch, divided like the loss by the number k of
    micro-batches in a window. So a step gets n/k of it, where n is the number of backward passes since the last step:
    fewer than k in the last window of an epoch, after a resume in the middle of one, or where a training step returned
    no loss.
    """

    def __init__(self) -> None:
        self._passes = 0
        self._is_told = False
        self._served: set[nn.Parameter] = set()

    def count(self) -> None:
        """Call in ``on_after_backward``."""
        self._passes += 1
        self._is_told = True

    def close(self, trainer: Trainer) -> float:
        """Returns the share n/k of the penalty that this step gets; call in ``on_before_optimizer_step``.

        Under manual optimization the user decides what a step is made of, so it gets the whole penalty.

        Args:
            trainer: That runs.
        """
        passes, self._passes = self._passes, 0
        automatic = trainer.lightning_module.automatic_optimization
        # Who calls loss.backward() instead of self.manual_backward() doesn't tell us; then every step is a new one.
        if passes or not self._is_told:
            self._served.clear()
        return passes / trainer.accumulate_grad_batches if automatic else 1.0

    def anew(self) -> "AccumulationWindow":
        """Returns an empty window: where no gradient is left, none of the passes so far reaches a step."""
        window = AccumulationWindow()
        window._is_told = self._is_told
        return window

    def serve(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Returns the parameters whose gradients don't contain the penalty yet.

        Two optimizers that share a parameter may both step after one backward pass: its gradient is changed once.

        Args:
            parameters: Those of the optimizer that is about to step.
        """
        fresh = [parameter for parameter in parameters if parameter not in self._served]
        self._served.update(fresh)
        return fresh


def gradient_scale(trainer: Trainer, optimizer: Optimizer) -> Tensor | None:
    """Returns the gradient scaler's scale where it is still in the gradients in ``on_before_optimizer_step``.

    That is so for optimizers that unscale by themselves, fused ones: what is added has to carry the scale, too.

    Args:
        trainer: That runs.
        optimizer: That is about to step.

    Returns:
        A scalar tensor on the optimizer's device, without a transfer to the host; None where there is no scale.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return None
    plugin = trainer.precision_plugin
    scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
    # Who clips by hand has called scaler.unscale_ already.
    if scaler is None or scaler._per_optimizer_states[id(optimizer)]["stage"] is not OptState.READY:
        return None
    return scaler_scale(trainer, next(each.device for group in optimizer.param_groups for each in group["params"]))


def unscaled_loss(trainer: Trainer, loss: Tensor) -> Tensor:
    """Returns the loss as the user's training step gave it, from what ``on_before_backward`` is handed.

    Args:
        trainer: That runs.
        loss: Multiplied by the gradient scaler's scale and divided by the number of accumulated batches.
    """
    loss = loss.detach()
    if trainer.lightning_module.automatic_optimization:
        loss = loss * trainer.accumulate_grad_batches
    scale = scaler_scale(trainer, loss.device)
    return loss if scale is None else loss / scale


def scaler_scale(trainer: Trainer, device: torch.device) -> Tensor | None:
    """Returns the gradient scaler's scale, without a transfer to the host; None where there is no scaler.

    Args:
        trainer: That runs.
        device: Where the scale is wanted.
    """
    plugin = trainer.precision_plugin
    scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
    if scaler is None:
        return None
    scale: Tensor = scaler.scale(torch.ones((), device=device))
    return scale


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Returns an optimizer's trainable parameters, in its order, without empty ones.

    Args:
        optimizer: That has them.
    """
    stepped = (each for group in optimizer.param_groups for each in group["params"])
    return [each for each in stepped if each.requires_grad and each.numel()]


def any_gradient(trainer: Trainer) -> bool:
    """Whether any parameter of any optimizer has a gradient.

    Args:
        trainer: With all optimizers.
    """
    groups = (group for optimizer in trainer.optimizers for group in optimizer.param_groups)
    return any(each.grad is not None for group in groups for each in group["params"])


def optimizer_name(trainer: Trainer, optimizer: Optimizer) -> str:
    """Returns what tells an optimizer's tags from those of others: nothing where it is alone.

    Args:
        trainer: With all optimizers.
        optimizer: One of them.
    """
    return f"_optimizer_{optimizer_index(trainer, optimizer) + 1}" if len(trainer.optimizers) > 1 else ""


def optimizer_index(trainer: Trainer, optimizer: Optimizer) -> int:
    """Returns the place of an optimizer among the trainer's.

    Args:
        trainer: With all optimizers.
        optimizer: One of them.
    """
    return next(index for index, each in enumerate(trainer.optimizers) if each is optimizer)


def dense_gradient(parameter: nn.Parameter) -> Tensor:
    """Returns a gradient that a penalty of all weights can be added to.

    It has one even where the loss has none: a branch that this batch didn't take, rows that it didn't look up.

    Args:
        parameter: Whose ``grad`` is made if need be.
    """
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    elif parameter.grad.is_sparse:
        parameter.grad = parameter.grad.to_dense()
    return parameter.grad


def gradient_values(parameter: nn.Parameter) -> Tensor:
    """Returns the entries of a gradient, sharing its memory: of a sparse one those that it holds.

    Args:
        parameter: With a gradient.
    """
    gradient = parameter.grad
    if gradient is None:
        raise ValueError("the parameter has no gradient")
    if gradient.is_sparse:
        parameter.grad = gradient = gradient.coalesce()  # the same gradient, every row once
        return gradient._values().detach()
    return gradient.detach()


def gradient_norms(parameters: Sequence[nn.Parameter], norm_type: float = 2.0) -> Tensor:
    """Returns the norms of the gradients, of sharded ones the whole norms.

    Args:
        parameters: At least one, each with a gradient.
        norm_type: Order of the norm.

    Returns:
        A tensor (len(parameters),).
    """
    gradients = [gradient_values(each) for each in parameters]
    if any(isinstance(each, DTensor) for each in gradients):
        return torch.stack([whole(torch.linalg.vector_norm(each, norm_type)) for each in gradients])
    return norms_of(gradients, norm_type)


def local(tensor: Tensor) -> Tensor:
    """Returns this process's part of a sharded tensor, sharing its memory; any other tensor as it is.

    Args:
        tensor: A parameter or a gradient.
    """
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def whole(tensor: Tensor) -> Tensor:
    """Returns all of a sharded tensor, which every process has to ask for; any other tensor as it is.

    Args:
        tensor: A parameter, a gradient or a norm.
    """
    detached = tensor.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


def to_shard(full: Tensor, like: Tensor) -> Tensor:
    """Returns a whole tensor where another one is, and sharded as it is.

    Args:
        full: All of it, on every process.
        like: A parameter or buffer.
    """
    moved = full.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements) if isinstance(like, DTensor) else moved


def same_parameters(some: Sequence[nn.Parameter], others: Sequence[nn.Parameter]) -> bool:
    """Whether these are the same parameters in the same order; comparing lists would compare their values.

    Args:
        some: Parameters.
        others: Parameters.
    """
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def refuse_sharded(selected: dict[str, nn.Parameter], technique: str) -> None:
    """Raises if a parameter is spread over processes, where a technique needs it whole.

    Args:
        selected: Parameters by name.
        technique: Named in the message.

    Raises:
        SettingError: With what to use instead.
    """
    for name, parameter in selected.items():
        if isinstance(parameter, DTensor):
            raise SettingError(
                f"strategy must keep weights whole with {technique}, but {name} is sharded over processes; use DDP, or "
                "exclude it"
            )
