"""Forward hooks that no copy of the hooked module keeps."""

from collections.abc import Callable
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_reg.core.lightning import remove_forward_hook

__all__ = ["ForwardHook", "add_forward_hook", "add_forward_pre_hook", "is_transformed", "without_records"]


class ForwardHook:
    """A hook of one run and one module, with a method ``remove`` as torch's handles have.

    torch copies hooks along with the module: in a deep copy the hook has no effect, and it is removed together with the
    module's own. A hook that is loaded from a pickle does nothing.

    Args:
        copies: Modules that were copied with the hook.
    """

    def __init__(self, module: nn.Module, hook: Callable[..., Any], copies: WeakSet[nn.Module]) -> None:
        self._module = ref(module)  # so that an unused copy is freed at once
        self._hook = hook
        self._copies = copies
        self.handle: RemovableHandle | None = None

    def __call__(self, *args: Any) -> Any:
        """Calls the hook with torch's arguments."""
        return self._hook(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._module()))
        if not isinstance(copied, nn.Module):
            return _nothing
        self._copies.add(copied)
        return ForwardHook(copied, _nothing, self._copies)

    def __reduce__(self) -> Any:
        return _made_nothing, ()

    def remove(self) -> None:
        """Removes the hook from the module and from all its copies; a second call does nothing."""
        if self.handle is None:
            return
        self.handle.remove()
        for copied in self._copies:
            remove_forward_hook(copied, self.handle)


def add_forward_hook(module: nn.Module, hook: Callable[..., Any], **settings: bool) -> ForwardHook:
    """Registers a forward hook.

    Args:
        hook: Function called after the module's ``forward``.
        settings: Keyword arguments of torch's ``register_forward_hook``.
    """
    held = ForwardHook(module, hook, WeakSet())
    held.handle = module.register_forward_hook(held, **settings)
    return held


def add_forward_pre_hook(module: nn.Module, hook: Callable[..., Any], **settings: bool) -> ForwardHook:
    """Registers a hook before a module's ``forward``.

    Args:
        settings: Keyword arguments of torch's ``register_forward_pre_hook``.
    """
    held = ForwardHook(module, hook, WeakSet())
    held.handle = module.register_forward_pre_hook(held, **settings)
    return held


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor only exists within a transform of ``torch.func``, as one sample of a batch does in ``vmap``."""
    return not torch.compiler.is_compiling() and bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def without_records(tensor: Tensor) -> Tensor:
    """Returns a tensor without what a subclass keeps beside the values, as MONAI's records of each image.

    Such a subclass looks at every function that its tensors are given to, and may refuse those that a batch isn't for.
    Subclasses that say how values are stored, as those of distributed tensors do, stay.
    """
    if torch.compiler.is_compiling() or type(tensor) is Tensor:
        return tensor
    is_stored_otherwise = type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
    return tensor if is_stored_otherwise else tensor.as_subclass(Tensor)


def _nothing(*args: Any) -> None:
    """Leaves inputs and outputs as they are."""


def _made_nothing() -> Callable[..., None]:
    return _nothing
