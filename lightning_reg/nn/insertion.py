"""Stochastic layers after any modules, without changing their code or checkpoints."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from lightning_reg.nn.layers.stochastic import Lease, StochasticLayer
from lightning_reg.settings import SettingError

__all__ = ["Insertion", "insertions", "insertions_at"]


class Insertion:
    """A forward hook that passes the output of a module through a stochastic layer.

    The layer isn't registered as a submodule, because modules that iterate over their children would run it; its mode
    is that of its host, so that a part of a network that is frozen in evaluation mode isn't perturbed.

    Args:
        layer: The stochastic layer.
        name: Name of the host, for messages.
        residual: Whether the host is a whole residual block, of which only the branch is perturbed.
        mode_of: Module whose mode the layer follows; the host where None.
        lease: Lifetime of the hook, shared by copies of the host; unlimited where None.

    >>> import torch
    >>> from lightning_reg.nn.layers.dropout import Dropout
    >>> host = nn.Linear(2, 2)
    >>> handle = host.register_forward_hook(Insertion(Dropout(0.5), "0"), with_kwargs=True)
    >>> [insertion.layer for insertion in insertions(host)]
    [Dropout(p=0.5)]
    """

    def __init__(
        self,
        layer: StochasticLayer,
        name: str,
        *,
        residual: bool = False,
        mode_of: nn.Module | None = None,
        lease: Lease | None = None,
    ) -> None:
        self.layer = layer
        self.name = name
        self.residual = residual
        self.mode_of = mode_of
        self.lease = lease
        self.is_forced = False
        """Whether the layer perturbs in evaluation, too."""
        self.has_run = False
        """Whether the host has run in training; torch.compile ignores hooks added after compilation."""

    def attach(self, host: nn.Module) -> RemovableHandle:
        """Registers the hook on a module."""
        return host.register_forward_hook(self, with_kwargs=True)

    def acts(self, host: nn.Module) -> bool:
        """Whether it perturbs now; also records in ``has_run`` that the host runs in training."""
        if self.has_ended:
            return False
        self.layer.training = (self.mode_of or host).training or self.is_forced
        self.has_run = self.has_run or self.layer.training
        return self.layer.training and not self.layer.is_idle

    def __call__(self, host: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any = None) -> Any:
        """Returns the output of the host, perturbed in training."""
        if not self.acts(host):
            return output
        if self.residual:
            return self._perturbed_block((*inputs, *named.values()), output)
        return _with_first_tensor(output, self._perturbed, self.name)

    @property
    def has_ended(self) -> bool:
        """Whether it belongs to a copy of a module from a run that has ended."""
        return self.lease is not None and self.lease.has_ended

    def _perturbed(self, output: Tensor) -> Tensor:
        try:
            perturbed: Tensor = self.layer(output)
        except SettingError as error:
            raise SettingError(f"include must leave {self.name} out: {error}") from error
        return perturbed

    def _perturbed_block(self, inputs: tuple[Any, ...], output: Any) -> Any:
        start = next((entry for entry in inputs if isinstance(entry, Tensor)), None)

        def perturbed(end: Tensor) -> Tensor:
            if start is None or start.shape != end.shape:
                shape = None if start is None else tuple(start.shape)
                raise SettingError(
                    f"include must name residual blocks, whose inputs and outputs have the same shape, but {self.name} "
                    f"makes {tuple(end.shape)} of {shape}; leave it out, or name the end of its residual branch for "
                    "InsertStochasticDepth(at='branch')"
                )
            if end is start:
                raise SettingError(
                    f"include must leave {self.name} out: it hands on its input, changed in place or not at all, so "
                    "that what it adds isn't known"
                )
            return self.layer.perturb_block(start, end)

        return _with_first_tensor(output, perturbed, self.name)


def insertions(module: nn.Module) -> Iterator[Insertion]:
    """Yields all insertions at a module and its submodules."""
    for submodule in module.modules():
        yield from insertions_at(submodule)


def insertions_at(module: nn.Module) -> Iterator[Insertion]:
    """Yields all insertions at a module itself."""
    for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
        if isinstance(hook, Insertion) and not hook.has_ended:
            yield hook


def _with_first_tensor(output: Any, change: Callable[[Tensor], Tensor], name: str) -> Any:
    """Returns a module's output with its first tensor changed, the main one of recurrent layers and attention."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, PackedSequence):
        return output._replace(data=change(output.data))
    if isinstance(output, tuple) and output and isinstance(output[0], (Tensor, PackedSequence)):
        first = _with_first_tensor(output[0], change, name)
        return type(output)(first, *output[1:]) if hasattr(output, "_fields") else (first, *output[1:])
    if isinstance(output, list) and output and isinstance(output[0], Tensor):
        return [change(output[0]), *output[1:]]
    raise SettingError(f"include must name modules that return tensors, but {name} returns a {type(output).__name__}")
