"""A second set of a module's weights, held by name, that can change places with the first."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from lightning_reg.attach.gradients import local, to_shard, whole
from lightning_reg.attach.selection import plain_name
from lightning_reg.functional.averaging import singular_vectors
from lightning_reg.optim import is_normalization

__all__ = ["HeldWeights", "norm_statistics", "spectral_vectors", "state_names", "tensors_of"]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Returns every parameter and buffer once, by its name as the user wrote it; of sharded ones the shards.

    Args:
        module: Whose tensors.

    >>> list(tensors_of(nn.BatchNorm1d(2)))
    ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    _reshard(module)
    named = [*module.named_parameters(), *module.named_buffers()]
    return {plain_name(name): tensor for name, tensor in named}


def state_names(module: nn.Module) -> dict[str, list[str]]:
    """Returns under which names each tensor is in the module's ``state_dict``; tied ones are there several times.

    Args:
        module: Whose tensors.
    """
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

    Args:
        module: Whose buffers.

    >>> norm_statistics(nn.BatchNorm1d(2))
    ['running_mean', 'running_var']
    """
    return [
        plain_name(f"{prefix}.{name}" if prefix else name)
        for prefix, each in module.named_modules()
        if is_normalization(each) and not isinstance(each, _SpectralNorm) and not any(each.children())
        for name, buffer in each.named_buffers(recurse=False)
        if buffer.is_floating_point()
    ]


def spectral_vectors(module: nn.Module) -> list[tuple[str, str, str, int]]:
    """Returns, of each spectrally normalized weight, the names of the plain weight, of u and v, and the output's dim.

    Args:
        module: With ``torch.nn.utils.parametrizations.spectral_norm`` or the older ``torch.nn.utils.spectral_norm``.

    >>> spectral_vectors(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)))
    [('weight', 'parametrizations.weight.0._u', 'parametrizations.weight.0._v', 0)]
    """
    found = []
    for prefix, each in module.named_modules():
        start = f"{prefix}." if prefix else ""
        for attribute, steps in getattr(each, "parametrizations", {}).items():
            for index, step in enumerate(steps):
                if isinstance(step, _SpectralNorm) and index == 0 and hasattr(step, "_u"):
                    at = f"{start}parametrizations.{attribute}"
                    found.append((f"{at}.original", f"{at}.0._u", f"{at}.0._v", step.dim))
        for hook in each._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                at = f"{start}{hook.name}"
                found.append((f"{at}_orig", f"{at}_u", f"{at}_v", hook.dim))
    return [(plain_name(weight), plain_name(u), plain_name(v), dim) for weight, u, v, dim in found]


class HeldWeights:
    """Weights that a module doesn't have at this moment: an average in training, the trained ones in evaluation.

    Contents change places, not tensors: optimizers, compiled code, CUDA graphs, shards and views go on referring to the
    module's own memory. Sixteen bits are too few to average in: an update is rounded to nothing. There the average is
    held in 32 bits, and while it is in the module, rounded, aside in ``exact``.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.exact: dict[str, Tensor] = {}
        self.is_in = False  # whether the module has the average

    def add(self, name: str, tensor: Tensor) -> None:
        """Holds a copy.

        Args:
            name: Of a parameter or buffer.
            tensor: Its value now.
        """
        halved = tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < 32
        copied = tensor.detach().clone()
        self.values[name] = copied.float() if halved else copied

    def exchange(self, module: nn.Module) -> None:
        """Lets what is held and what the module has change places.

        Args:
            module: Whose tensors.
        """
        tensors = tensors_of(module)
        # Validation runs in inference mode, whose tensors couldn't be trained with afterwards.
        with torch.inference_mode(False), torch.no_grad():
            if not self.is_in:
                self._renew_spectral_vectors(module)
            for name, held in self.values.items():
                inside = local(tensors[name])
                if name in self.exact:  # the module has the average, rounded
                    inside.copy_(local(held))
                    self.values[name] = self.exact[name]
                elif held.dtype != tensors[name].dtype:
                    self.exact[name], self.values[name] = held, tensors[name].detach().clone()
                    inside.copy_(local(held))
                else:
                    outside, kept = local(held), inside.clone()  # one tensor's copy at a time
                    inside.copy_(outside)
                    outside.copy_(kept)
        if self.is_in:
            self.exact = {}
        self.is_in = not self.is_in
        _reshard(module)

    def move(self, module: nn.Module) -> None:
        """Brings everything to where the module's tensors are.

        Args:
            module: On its device.
        """
        tensors = tensors_of(module)
        for held in (self.values, self.exact):
            held.update({name: value.to(tensors[name].device) for name, value in held.items()})

    def save_into(self, state_dict: dict[str, Any], module: nn.Module) -> None:
        """Puts the average in the place of the trained weights.

        Args:
            state_dict: The module's; on processes that save nothing it may be empty.
            module: Whose names are in it.
        """
        if self.is_in:
            return
        self._renew_spectral_vectors(module)
        for name, keys in state_names(module).items():
            if name not in self.values:
                continue
            held = self.values[name]
            full = None if any(isinstance(state_dict.get(key), DTensor) for key in keys) else whole(held)
            for key in keys:
                if key in state_dict:
                    saved = held if full is None else full
                    state_dict[key] = saved.to(device=state_dict[key].device, dtype=state_dict[key].dtype)

    def state(self, module: nn.Module, *, beside: bool) -> dict[str, dict[str, Tensor]]:
        """Returns what a checkpoint needs beside the module's state dict.

        Args:
            module: As it is now.
            beside: Whether the state dict holds the average, so that the trained weights are kept here; else the
                average is.
        """
        tensors = tensors_of(module)
        trained = self.values if self.is_in else tensors
        average = {**tensors, **self.exact} if self.is_in else self.values
        rounded = {name for name in self.values if average[name].dtype != tensors[name].dtype or name in self.exact}
        return {
            "trained": {name: _saved(trained[name]) for name in self.values if beside},
            "average": {name: _saved(average[name]) for name in self.values if not beside or name in rounded},
        }

    def load(self, state: dict[str, dict[str, Tensor]], module: nn.Module) -> None:
        """Takes the average out of the module, which has loaded a checkpoint, and puts the trained weights in.

        Args:
            state: What :meth:`state` returned.
            module: That has loaded the state dict.
        """
        tensors = tensors_of(module)
        self.values, self.exact, self.is_in = {}, {}, False
        with torch.no_grad():
            for name, tensor in tensors.items():  # in the same order on all processes
                if name not in state["trained"] and name not in state["average"]:
                    continue
                if name in state["average"]:
                    self.values[name] = to_shard(state["average"][name], tensor)
                else:
                    self.add(name, tensor)
                if name in state["trained"]:
                    local(tensor).copy_(local(to_shard(state["trained"][name], tensor)))

    def _renew_spectral_vectors(self, module: nn.Module) -> None:
        """An average of singular vectors is none: those of the averaged weight are computed."""
        for weight, u, v, dim in spectral_vectors(module):
            if weight in self.values and u in self.values:
                matrix = whole(self.values[weight]).movedim(dim, 0).flatten(1)
                for name, vector in zip((u, v), singular_vectors(matrix), strict=True):
                    self.values[name].copy_(vector)


def _saved(tensor: Tensor) -> Tensor:
    full = whole(tensor)
    return full.cpu() if isinstance(tensor, DTensor) else full


def _reshard(module: nn.Module) -> None:
    """What FSDP has gathered for a forward pass is let go, else it would outlive a change of the shards."""
    for each in _sharded(module):
        each.reshard()


def _sharded(module: nn.Module) -> Iterable[Any]:
    from torch.distributed.fsdp import FSDPModule

    return (each for each in module.modules() if isinstance(each, FSDPModule))
