"""A module's parameters and buffers, where they are registered, and which of them belong to normalization layers."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from lightning_reg.core.gradients import local
from lightning_reg.core.selection import plain_name
from lightning_reg.optim import is_normalization

__all__ = [
    "Registered",
    "children_in",
    "fingerprint",
    "is_expanded",
    "is_sharded",
    "norm_statistics",
    "registered_in",
    "reshard",
    "spectral_vectors",
    "state_names",
    "tensors_of",
]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Returns every parameter and buffer once, by its name in the user's code; of sharded ones the shards.

    >>> list(tensors_of(nn.BatchNorm1d(2)))
    ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    return {place.name: place.tensor for place in registered_in(module)}


class Registered(NamedTuple):
    """A tensor and where a module has registered it.

    Attributes:
        name: Qualified name in the user's code.
        owner: Parameters or buffers of the submodule that has it, by ``key``.
    """

    name: str
    tensor: Tensor
    owner: Mapping[str, Tensor | None]
    key: str

    @property
    def is_stale(self) -> bool:
        """Whether the owner now has another tensor under this key, or none."""
        return self.key not in self.owner or self.owner[self.key] is not self.tensor


def registered_in(module: nn.Module) -> list[Registered]:
    """Returns a module's parameters, then its buffers, each once; parameters that FSDP has gathered are resharded."""
    reshard(module)
    parts = list(module.named_modules())
    found: dict[int, Registered] = {}
    for owners in ([(prefix, part._parameters) for prefix, part in parts], [(p, part._buffers) for p, part in parts]):
        for prefix, owner in owners:
            for key, tensor in owner.items():
                if tensor is not None and id(tensor) not in found:
                    name = plain_name(f"{prefix}.{key}" if prefix else key)
                    found[id(tensor)] = Registered(name, tensor, owner, key)
    return list(found.values())


def children_in(module: nn.Module) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Returns the children of each submodule, by name: as they are registered, and as they are now.

    The two of a pair differ as soon as a child is added, removed or replaced.
    """
    # Those of torch.jit stay as they were compiled.
    parts = (part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule))
    return [(part._modules, dict(part._modules)) for part in parts if part._modules]


def fingerprint(module: nn.Module) -> Tensor:
    """Returns the norms of a module's parameters, by which it is seen whether anybody has written other weights.

    >>> fingerprint(nn.Linear(2, 3)).shape
    torch.Size([2])
    """
    # Those of lazy layers have no values before the first batch.
    shaped = (weight for weight in module.parameters() if not isinstance(weight, UninitializedParameter))
    weights = [local(weight) for weight in shaped if weight.is_floating_point() or weight.is_complex()]
    norms = torch._foreach_norm(weights) if weights else []
    # On one device, where there are several, and without waiting for it.
    return torch.stack([norm.to(norms[0].device) for norm in norms]) if norms else torch.zeros(0)


def state_names(module: nn.Module) -> dict[str, list[str]]:
    """Returns the keys of each tensor in the module's ``state_dict``, by name; tied ones have several."""
    first = {id(tensor): name for name, tensor in tensors_of(module).items()}
    names: dict[str, list[str]] = {name: [] for name in first.values()}
    for key, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        names[first[id(tensor)]].append(key)
    return names


def norm_statistics(module: nn.Module) -> list[str]:
    """Returns the names of the running statistics of normalization layers, without integer counters.

    >>> norm_statistics(nn.BatchNorm1d(2))
    ['running_mean', 'running_var']
    """
    return [
        plain_name(f"{prefix}.{name}" if prefix else name)
        for prefix, submodule in module.named_modules()
        if is_normalization(submodule) and not isinstance(submodule, _SpectralNorm) and not any(submodule.children())
        for name, buffer in submodule.named_buffers(recurse=False)
        if buffer.is_floating_point()
    ]


def spectral_vectors(module: nn.Module) -> list[tuple[str, str, str, int]]:
    """Returns, for each spectrally normalized weight, the names of the plain weight, u and v, and the output dimension.

    Args:
        module: Module with ``torch.nn.utils.parametrizations.spectral_norm`` or the older
            ``torch.nn.utils.spectral_norm``.

    >>> spectral_vectors(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)))
    [('weight', 'parametrizations.weight.0._u', 'parametrizations.weight.0._v', 0)]
    """
    found = []
    for prefix, submodule in module.named_modules():
        start = f"{prefix}." if prefix else ""
        for attribute, steps in getattr(submodule, "parametrizations", {}).items():
            for index, step in enumerate(steps):
                if isinstance(step, _SpectralNorm) and index == 0 and hasattr(step, "_u"):
                    at = f"{start}parametrizations.{attribute}"
                    found.append((f"{at}.original", f"{at}.0._u", f"{at}.0._v", step.dim))
        for hook in submodule._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                at = f"{start}{hook.name}"
                found.append((f"{at}_orig", f"{at}_u", f"{at}_v", hook.dim))
    return [(plain_name(weight), plain_name(u), plain_name(v), dim) for weight, u, v, dim in found]


def is_expanded(tensor: Tensor) -> bool:
    """Whether entries of a tensor share memory, so that nothing can be written into it."""
    if tensor.layout != torch.strided:
        return False
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 shards a module, which can't be copied then."""
    return any(True for _ in _sharded(module))


def reshard(module: nn.Module) -> None:
    """Frees parameters that FSDP has gathered for a forward pass, which a change of the shards would make stale."""
    for shard in _sharded(module):
        shard.reshard()


def _sharded(module: nn.Module) -> Iterable[Any]:
    from torch.distributed.fsdp import FSDPModule

    return (submodule for submodule in module.modules() if isinstance(submodule, FSDPModule))
