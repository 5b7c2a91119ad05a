"""What functions with a gradient of their own must know of how they are run."""

import torch

__all__ = ["is_traced_or_transformed"]


def is_traced_or_transformed() -> bool:
    """Whether torch.compile traces this, or torch.func transforms it: then the plain formula is to be run."""
    # There is no public question for the second.
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None
