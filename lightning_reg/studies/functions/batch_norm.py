"""Comparison of BatchNorm's backward pass, derived by hand, with torch's."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_reg.functional.reference.batch_norm import batch_norm
from lightning_reg.settings import SettingError, check_choice

__all__ = ["batch_norm_backward"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def batch_norm_backward(
    *,
    seed: int,
    dtype: Literal["float32", "float64"] = "float64",
    shape: Sequence[int] = (64, 32),
    mean: float = 0.0,
) -> dict[str, float]:
    """Compares BatchNorm's gradients by textbook formulas with those of torch.

    Args:
        seed: Seed of inputs, weights and output gradients.
        dtype: Floating-point type of both computations.
        shape: Shape of the inputs: (N, C), (N, C, L) or (N, C, H, W).
        mean: Mean of the inputs, whose standard deviation is 1; far from 0, precision is lost.

    Returns:
        For the outputs and each gradient the largest absolute difference, divided by the largest absolute value of
        torch's (``error/inputs``, ``error/weight``, ``error/bias``, ``error/outputs``), the largest of these among the
        gradients (``error/gradients``), and the same without the division (``absolute_error/...``).

    Raises:
        SettingError: If the dtype is unknown, or a channel would have a single value.

    >>> batch_norm_backward(seed=0)["error/gradients"] < 1e-12
    True
    """
    check_choice("dtype", dtype, tuple(_DTYPES))
    if len(shape) < 2 or min(shape) < 1 or math.prod(shape) == shape[1]:
        raise SettingError(f"shape must be (N, C, ...) with several values a channel, but is {tuple(shape)}")
    generator = torch.Generator().manual_seed(seed)

    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(_DTYPES[dtype])

    inputs, above = drawn(*shape) + mean, drawn(*shape)
    weight, bias = drawn(shape[1]) + 1, drawn(shape[1])
    ours = _with_gradients(batch_norm, inputs, weight, bias, above)
    theirs = _with_gradients(F.batch_norm, inputs, weight, bias, above)
    errors: dict[str, float] = {}
    for kind, largest in (("error", lambda tensor: tensor.abs().max().item()), ("absolute_error", lambda _: 1.0)):
        of_kind = {name: (ours[name] - theirs[name]).abs().max().item() / largest(theirs[name]) for name in theirs}
        of_kind["gradients"] = max(value for name, value in of_kind.items() if name != "outputs")
        errors |= {f"{kind}/{name}": value for name, value in of_kind.items()}
    return errors


def _with_gradients(
    function: Callable[..., Tensor], inputs: Tensor, weight: Tensor, bias: Tensor, above: Tensor
) -> dict[str, Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in (inputs, weight, bias)]
    outputs = function(leaves[0], None, None, weight=leaves[1], bias=leaves[2], training=True)
    gradients = torch.autograd.grad(outputs, leaves, above)
    return {"outputs": outputs.detach()} | dict(zip(("inputs", "weight", "bias"), gradients, strict=True))
