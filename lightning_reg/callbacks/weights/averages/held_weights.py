"""A second set of a module's weights, held by name, that can be swapped with the first."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from typing_extensions import Self

from lightning_reg.callbacks.weights.averages.registered import reshard, spectral_vectors, state_names, tensors_of
from lightning_reg.core.gradients import local, to_shard, whole
from lightning_reg.functional.spectrum import singular_vectors

__all__ = ["HeldWeights"]


class HeldWeights:
    """Weights that a module doesn't have at this moment: an average in training, the trained ones in evaluation.

    Contents are swapped, not tensors: optimizers, compiled code, CUDA graphs, shards and views go on referring to the
    module's own memory. In 16 bits an update would be rounded to nothing, so the average of such weights is held in 32
    bits, and in ``exact`` while the module has it rounded.

    Attributes:
        values: Held weights, by name of the parameter or buffer.
        exact: Average in 32 bits of the weights that the module has in fewer; filled while the module has the average.
        is_in: Whether the module has the average, and the trained weights are held.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.exact: dict[str, Tensor] = {}
        self.is_in = False
        self._known: dict[str, Tensor] = {}  # the module's tensors, by which they are found under other names

    def add(self, name: str, tensor: Tensor) -> None:
        """Holds a copy of a parameter or buffer."""
        copied = tensor.detach().clone()
        self.values[name] = copied.float() if _is_halved(tensor) else copied
        self._known[name] = tensor

    def follow(self, tensors: Mapping[str, Tensor], *, is_final: bool = False) -> None:
        """Follows tensors that were renamed (as by pruning) or replaced; drops those that are gone or of other shapes.

        Args:
            tensors: The module's tensors, by name.
            is_final: Whether training has ended, so that what pruning has taken away doesn't grow again.
        """
        if all(tensors.get(name) is known and _fits(self.values[name], known) for name, known in self._known.items()):
            return
        names = {id(tensor): name for name, tensor in tensors.items()}
        now = {name: names.get(id(self._known[name]), name) for name in self.values}
        kept = {old: new for old, new in now.items() if new in tensors and _fits(self.values[old], tensors[new])}
        for old, new in kept.items():
            if is_final and old == f"{new}_orig":  # pruning was made permanent
                with torch.inference_mode(False), torch.no_grad():
                    local(self.values[old]).mul_(local(tensors[new]) != 0)
        self.values = {new: self.values[old] for old, new in kept.items()}
        self.exact = {new: self.exact[old] for old, new in kept.items() if old in self.exact}
        self._known = {name: tensors[name] for name in self.values}

    def exchange(self, module: nn.Module) -> None:
        """Swaps the held weights with the module's."""
        tensors = tensors_of(module)
        self.follow(tensors)
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
        reshard(module)

    def write_into(self, copied: nn.Module) -> None:
        """Writes the average into a copy of the module, which has the module's current weights."""
        if self.is_in:
            return
        tensors = tensors_of(copied)
        with torch.inference_mode(False), torch.no_grad():
            self._renew_spectral_vectors(copied)
            for name, value in self.values.items():
                tensors[name].copy_(value)

    def average(self, module: nn.Module) -> dict[str, Tensor]:
        """Returns the average by name, whether it is held or in the module."""
        if not self.is_in:
            return dict(self.values)
        tensors = tensors_of(module)
        return {name: self.exact.get(name, tensors[name].detach()) for name in self.values if name in tensors}

    # Checkpoints

    def kept(self) -> dict[str, Any]:
        """Returns everything that is held, without copies of the tensors."""
        return {"values": dict(self.values), "exact": dict(self.exact), "is_in": self.is_in}

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Self:
        """Returns held weights from the result of :meth:`kept`, which may have other entries, too."""
        held = cls()
        held.values, held.exact, held.is_in = dict(kept["values"]), dict(kept["exact"]), kept["is_in"]
        return held

    def save_into(self, state_dict: dict[str, Any], module: nn.Module) -> None:
        """Replaces the trained weights in a state dict by the average.

        Args:
            state_dict: State dict of the module; may be empty on processes that save nothing.
        """
        if self.is_in:
            return
        self._renew_spectral_vectors(module)
        pruned = _made_permanent(module, state_dict)
        for name, keys in state_names(module).items():
            if name not in self.values:
                continue
            held = self.values[name]
            saved_as = keys
            if name in pruned:
                held, saved_as = held * pruned[name].mask, [key.removesuffix("_orig") for key in keys]
            full = None if any(isinstance(state_dict.get(key), DTensor) for key in saved_as) else whole(held)
            for key in saved_as:
                if key in state_dict:
                    saved = held if full is None else full
                    state_dict[key] = saved.to(device=state_dict[key].device, dtype=state_dict[key].dtype)

    def beside(self, module: nn.Module, state_dict: Mapping[str, Any], *, gives: bool) -> dict[str, Any]:
        """Returns what a checkpoint needs beside the module's state dict, in the form of :meth:`kept`.

        Args:
            state_dict: State dict in the checkpoint.
            gives: Whether the state dict holds the average, as if the module had it; else the trained weights.
        """
        if self.is_in or not gives:
            values, exact, is_in = self.values, self.exact, self.is_in
        else:
            tensors = tensors_of(module)
            values = {name: tensors[name] for name in self.values if name in tensors}
            exact = {name: self.values[name] for name in values if self.values[name].dtype != values[name].dtype}
            is_in = True
        pruned = _made_permanent(module, state_dict)
        return {"values": _renamed(_whole(values), pruned), "exact": _renamed(_whole(exact), pruned), "is_in": is_in}

    def load(self, kept: Mapping[str, Any], module: nn.Module) -> None:
        """Takes the average out of the module, which has loaded a checkpoint, and puts the trained weights in.

        Args:
            kept: Result of :meth:`beside`.
            module: Module that has loaded the state dict.
        """
        tensors = tensors_of(module)
        values, exact = kept["values"], kept["exact"]
        self.values, self.exact, self.is_in, self._known = {}, {}, False, {}
        with torch.no_grad():
            for name, tensor in tensors.items():  # in the same order on all processes
                if name not in values or values[name].shape != tensor.shape:
                    continue
                self.add(name, tensor)
                average = exact.get(name) if kept["is_in"] else values[name]
                if average is not None:
                    self.values[name] = to_shard(average, tensor)
                if kept["is_in"]:
                    local(tensor).copy_(local(to_shard(values[name], tensor)))

    def _renew_spectral_vectors(self, module: nn.Module) -> None:
        """Computes the singular vectors of averaged weights, because averages of singular vectors aren't any."""
        for weight, u, v, dim in spectral_vectors(module):
            if weight in self.values and u in self.values:
                matrix = whole(self.values[weight]).movedim(dim, 0).flatten(1)
                for name, vector in zip((u, v), singular_vectors(matrix), strict=True):
                    self.values[name].copy_(vector)


def _is_halved(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < 32


def _fits(held: Tensor, tensor: Tensor) -> bool:
    return held.shape == tensor.shape


class _Pruned(NamedTuple):
    """A weight whose pruning is permanent in a checkpoint, though not in the module.

    Attributes:
        name: Its name in the checkpoint.
        mask: What it is multiplied by there.
    """

    name: str
    mask: Tensor


def _made_permanent(module: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, _Pruned]:
    """Returns the weights whose pruning is permanent in a state dict, by their names in the module."""
    tensors = tensors_of(module)
    found = {}
    for name, keys in state_names(module).items():
        plain, key = name.removesuffix("_orig"), keys[0].removesuffix("_orig")
        mask = tensors.get(f"{plain}_mask")
        if mask is not None and keys[0] not in state_dict and key in state_dict:
            found[name] = _Pruned(plain, mask)
    return found


def _renamed(tensors: dict[str, Tensor], pruned: Mapping[str, _Pruned]) -> dict[str, Tensor]:
    others = {name: value for name, value in tensors.items() if name not in pruned}
    return others | {pruned[name].name: value * pruned[name].mask for name, value in tensors.items() if name in pruned}


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gathers sharded tensors on the CPU; all processes have to call it with the same order of names."""
    return {
        name: whole(tensor).cpu() if isinstance(tensor, DTensor) else tensor.detach()
        for name, tensor in tensors.items()
    }
