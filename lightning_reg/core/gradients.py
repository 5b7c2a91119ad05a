"""Reading and writing gradients between backward and the optimizer's step, exactly as a hand-written loop would."""

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
    """Returns a parameter's gradient as a dense tensor, to which the gradient of a weight penalty can be added.

    A penalty has a gradient even where the loss has none: in a branch that this batch didn't take, in rows of an
    embedding that it didn't look up.

    Args:
        parameter: The parameter; its ``grad`` is created if it has none.
    """
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    elif parameter.grad.is_sparse:
        parameter.grad = parameter.grad.to_dense()
    elif parameter.grad.is_conj():  # torch's foreach functions don't write to those
        parameter.grad = parameter.grad.resolve_conj()
    return parameter.grad


def gradient_values(parameter: nn.Parameter) -> Tensor:
    """Returns the entries of a gradient, sharing its memory; of a sparse one, the stored entries."""
    gradient = _gradient(parameter)
    if gradient.is_sparse:
        parameter.grad = gradient = gradient.coalesce()  # the same gradient, with every row once
    elif gradient.is_conj():
        parameter.grad = gradient = gradient.resolve_conj()
    return _values(gradient)


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise ValueError("the parameter has no gradient")
    return parameter.grad


def _values(gradient: Tensor) -> Tensor:
    return gradient.coalesce()._values().detach() if gradient.is_sparse else without_graph(gradient)


def gradient_norms(parameters: Sequence[nn.Parameter], norm_type: float = 2.0) -> Tensor:
    """Returns the norms of the gradients, which stay as they are; of sharded ones, those of the full tensors.

    Args:
        parameters: At least one parameter, each with a gradient.
        norm_type: Order of the norm.

    Returns:
        Tensor (len(parameters),).
    """
    gradients = [_values(_gradient(parameter)) for parameter in parameters]
    if any(isinstance(gradient, DTensor) for gradient in gradients):
        return _norms_of_shards([_summed(gradient) for gradient in gradients], norm_type)
    return norms_of(gradients, norm_type)


def _norms_of_shards(gradients: list[Tensor], norm_type: float) -> Tensor:
    """Returns the norms of the full tensors, by one reduction over processes for all that are sharded alike."""
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
    """Returns the sum of a gradient's partial values on all processes, as tensor parallelism leaves them."""
    if not isinstance(gradient, DTensor) or not any(placement.is_partial() for placement in gradient.placements):
        return gradient
    placements = [Replicate() if placement.is_partial() else placement for placement in gradient.placements]
    return gradient.redistribute(placements=placements)


def _part(gradient: Tensor) -> Tensor:
    """Returns this process's shard of a gradient, or a zero if that is empty and so has no largest entry."""
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
    """Returns this process's shard of a sharded tensor, sharing its memory; any other tensor as it is."""
    detached = without_graph(tensor)
    return detached.to_local() if isinstance(detached, DTensor) else detached


def without_graph(tensor: Tensor) -> Tensor:
    """Returns a view of a tensor that autograd doesn't record, or the tensor itself if that holds for it already."""
    # A view of a tensor made in inference mode may be written to outside of it; the tensor itself may not.
    return tensor.detach() if tensor.requires_grad or tensor.is_inference() else tensor


def whole(tensor: Tensor) -> Tensor:
    """Returns the full tensor of a sharded one, which every process has to call; any other tensor as it is."""
    detached = tensor.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


def shard_of(tensor: Tensor) -> tuple[int, ...]:
    """Returns the index of this process's shard of a tensor, the same for processes with copies of one shard.

    Returns:
        Coordinates of the process along the dimensions of the mesh that shard the tensor; empty if it isn't sharded.
    """
    if not isinstance(tensor, DTensor):
        return ()
    place = tensor.device_mesh.get_coordinate() or ()
    return tuple(
        index for index, placement in zip(place, tensor.placements, strict=False) if not placement.is_replicate()
    )


def to_shard(full: Tensor, like: Tensor) -> Tensor:
    """Returns a full tensor on the device of another one, and sharded like it.

    Args:
        full: Full tensor, the same on every process.
        like: Parameter or buffer with the device and the sharding.
    """
    moved = full.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements) if isinstance(like, DTensor) else moved


def refuse_complex(names: Mapping[nn.Parameter, str], technique: str, instead: str) -> None:
    """Raises if a parameter is complex, for techniques that need ordered numbers.

    Args:
        technique: Name of the technique, for the error message.
        instead: Alternative to suggest in the error message.

    Raises:
        SettingError: If a parameter is complex.
    """
    for parameter, name in names.items():
        if parameter.is_complex():
            raise SettingError(
                f"include must choose real weights with {technique}, but {name} is complex, and complex numbers have "
                f"no order; {instead}"
            )


def refuse_sharded(names: Mapping[nn.Parameter, str], technique: str, instead: str = "use DDP, or exclude it") -> None:
    """Raises if a parameter is sharded over processes, for techniques that need full tensors.

    Args:
        technique: Name of the technique, for the error message.
        instead: Alternative to suggest in the error message.

    Raises:
        SettingError: If a parameter is sharded.
    """
    for parameter, name in names.items():
        if isinstance(parameter, DTensor):
            raise SettingError(
                f"strategy must keep weights whole with {technique}, but {name} is sharded over processes; {instead}"
            )
