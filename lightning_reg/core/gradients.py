"""Reading and writing gradients between backward and the optimizer's step, exactly as a loop by hand would."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor

from lightning_reg.functional.norms import norms_of
from lightning_reg.settings import SettingError

__all__ = [
    "dense_gradient",
    "gradient_norms",
    "gradient_values",
    "local",
    "refuse_complex",
    "refuse_sharded",
    "shard_of",
    "to_shard",
    "whole",
    "without_graph",
]


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
    elif parameter.grad.is_conj():  # torch's functions of many tensors at once don't write to those
        parameter.grad = parameter.grad.resolve_conj()
    return parameter.grad


def gradient_values(parameter: nn.Parameter) -> Tensor:
    """Returns the entries of a gradient, sharing its memory: of a sparse one those that it holds."""
    gradient = parameter.grad
    if gradient is None:
        raise ValueError("the parameter has no gradient")
    if gradient.is_sparse:
        parameter.grad = gradient = gradient.coalesce()  # the same gradient, every row once
        return gradient._values().detach()
    if gradient.is_conj():
        parameter.grad = gradient = gradient.resolve_conj()
    return without_graph(gradient)


def gradient_norms(parameters: Sequence[nn.Parameter], norm_type: float = 2.0) -> Tensor:
    """Returns the norms of the gradients, of sharded ones the whole norms.

    Args:
        parameters: At least one, each with a gradient.
        norm_type: Order of the norm.

    Returns:
        A tensor (len(parameters),).
    """
    gradients = [gradient_values(parameter) for parameter in parameters]
    if any(isinstance(gradient, DTensor) for gradient in gradients):
        return _norms_of_shards([_summed(gradient) for gradient in gradients], norm_type)
    return norms_of(gradients, norm_type)


def _norms_of_shards(gradients: list[Tensor], norm_type: float) -> Tensor:
    """Returns the norms of whole tensors by one reduction over processes for all that are shared out alike."""
    norms = list(norms_of([_part(gradient) for gradient in gradients], norm_type).unbind())
    shared: dict[tuple[DeviceMesh, tuple[bool, ...]], list[int]] = {}
    for index, gradient in enumerate(gradients):
        if isinstance(gradient, DTensor):
            is_shared = tuple(not placement.is_replicate() for placement in gradient.placements)
            shared.setdefault((gradient.device_mesh, is_shared), []).append(index)
    for (mesh, is_shared), indices in shared.items():
        of_parts = torch.stack([norms[index] for index in indices])
        for index, value in zip(indices, _over_processes(of_parts, norm_type, mesh, is_shared).unbind(), strict=True):
            norms[index] = value
    return torch.stack(norms)


def _summed(gradient: Tensor) -> Tensor:
    """Returns a gradient of which every process holds a summand (tensor parallelism has such) as their sum."""
    if not isinstance(gradient, DTensor) or not any(placement.is_partial() for placement in gradient.placements):
        return gradient
    placements = [Replicate() if placement.is_partial() else placement for placement in gradient.placements]
    return gradient.redistribute(placements=placements)


def _part(gradient: Tensor) -> Tensor:
    """Returns what this process has of a gradient, and a zero where that is nothing: it has no largest entry."""
    part = local(gradient)
    return part if part.numel() else part.new_zeros(1)


def _over_processes(norms: Tensor, norm_type: float, mesh: DeviceMesh, is_shared: tuple[bool, ...]) -> Tensor:
    is_largest = norm_type == torch.inf
    values = norms if is_largest else norms.double() ** norm_type
    partial = Partial("max" if is_largest else "sum")
    placements = [partial if shared else Replicate() for shared in is_shared]
    found = DTensor.from_local(values, mesh, placements, run_check=False).full_tensor()
    return found if is_largest else (found ** (1 / norm_type)).to(norms.dtype)


def local(tensor: Tensor) -> Tensor:
    """Returns this process's part of a sharded tensor, sharing its memory; any other tensor as it is.

    Args:
        tensor: A parameter or a gradient.
    """
    detached = without_graph(tensor)
    return detached.to_local() if isinstance(detached, DTensor) else detached


def without_graph(tensor: Tensor) -> Tensor:
    """Returns a tensor that no graph is recorded of, sharing its memory: usually a gradient itself is one.

    Args:
        tensor: A parameter, a buffer or a gradient.
    """
    # A view of what was made in inference mode may be written to outside of it, it itself may not.
    return tensor.detach() if tensor.requires_grad or tensor.is_inference() else tensor


def whole(tensor: Tensor) -> Tensor:
    """Returns all of a sharded tensor, which every process has to ask for; any other tensor as it is.

    Args:
        tensor: A parameter, a gradient or a norm.
    """
    detached = tensor.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


def shard_of(tensor: Tensor) -> tuple[int, ...]:
    """Returns which part of a sharded tensor this process has; equal where processes have copies of one part.

    Args:
        tensor: A parameter or a gradient.

    Returns:
        The process's place along the dimensions of the mesh that share out the tensor; empty of a whole one.
    """
    if not isinstance(tensor, DTensor):
        return ()
    place = tensor.device_mesh.get_coordinate() or ()
    return tuple(
        index for index, placement in zip(place, tensor.placements, strict=False) if not placement.is_replicate()
    )


def to_shard(full: Tensor, like: Tensor) -> Tensor:
    """Returns a whole tensor where another one is, and sharded as it is.

    Args:
        full: All of it, on every process.
        like: A parameter or buffer.
    """
    moved = full.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements) if isinstance(like, DTensor) else moved


def refuse_complex(names: Mapping[nn.Parameter, str], technique: str, instead: str) -> None:
    """Raises if a parameter is complex, where a technique needs numbers that have an order.

    Args:
        technique: Named in the message.
        instead: What else there is, for the message.

    Raises:
        SettingError: With what to use instead.
    """
    for parameter, name in names.items():
        if parameter.is_complex():
            raise SettingError(
                f"include must choose real weights with {technique}, but {name} is complex, and complex numbers have "
                f"no order; {instead}"
            )


def refuse_sharded(names: Mapping[nn.Parameter, str], technique: str, instead: str = "use DDP, or exclude it") -> None:
    """Raises if a parameter is spread over processes, where a technique needs it whole.

    Args:
        technique: Named in the message.
        instead: What else there is, for the message.

    Raises:
        SettingError: With what to use instead.
    """
    for parameter, name in names.items():
        if isinstance(parameter, DTensor):
            raise SettingError(
                f"strategy must keep weights whole with {technique}, but {name} is sharded over processes; {instead}"
            )
