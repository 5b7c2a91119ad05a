"""Detection of tracing and of function transforms; gradients by inputs."""

import torch
from torch import Tensor

from lightning_reg.settings import SettingError

__all__ = ["gradient_by_inputs", "is_traced_or_transformed", "is_transformed"]


def is_transformed() -> bool:
    """Whether torch.func transforms the caller, outside of compiled code."""
    # torch has no public function for it.
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def is_traced_or_transformed() -> bool:
    """Whether torch.compile traces the caller or torch.func transforms it, so that a custom gradient can't be used."""
    return torch.compiler.is_compiling() or is_transformed()


def gradient_by_inputs(loss: Tensor, inputs: Tensor, *, keep_graph: bool = False, create_graph: bool = False) -> Tensor:
    """Returns the gradient of a scalar by the inputs that it was computed from.

    Args:
        loss: Scalar to differentiate.
        inputs: (N, ...), requiring a gradient.
        keep_graph: Whether the graph is kept, because the loss is differentiated again.
        create_graph: Whether the gradient itself can be differentiated; implies ``keep_graph``.

    Raises:
        SettingError: If the loss doesn't depend on the inputs.

    >>> inputs = torch.tensor([2.0], requires_grad=True)
    >>> gradient_by_inputs((inputs**2).sum(), inputs)
    tensor([4.])
    """
    found = None
    if loss.requires_grad:
        keep = keep_graph or create_graph
        found = torch.autograd.grad(loss, inputs, retain_graph=keep, create_graph=create_graph, allow_unused=True)[0]
    if found is None:
        raise SettingError("inputs must be what the loss is computed of, but it doesn't depend on them")
    return found
