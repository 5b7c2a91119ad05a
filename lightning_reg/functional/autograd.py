"""How a function is being run, which decides whether it may bring a gradient of its own."""

import torch

__all__ = ["is_traced_or_transformed"]


def is_traced_or_transformed() -> bool:
    """Whether torch.compile traces this, or torch.func transforms it: then the plain formula has to run."""
    # torch has no public function for the second.
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None
