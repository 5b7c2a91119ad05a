"""Checks before training that a network matches the data."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.settings import SettingError

__all__ = ["check_network", "check_outputs"]


def check_network(network: nn.Module, input_shape: Sequence[int], num_outputs: int) -> None:
    """Raises unless a network takes the data's samples and returns an output for each class or target.

    The network is run in evaluation mode on two samples of zeros and isn't changed.

    Args:
        network: Module from (N, *input_shape) to (N, num_outputs).
        num_outputs: Number of outputs that the task needs.

    Raises:
        SettingError: If the network fails on such inputs, or its outputs have another shape.

    >>> check_network(nn.Linear(3, 2), (4,), 2)
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: network must take inputs of the data's shape (N, 4), but Linear fails ...
    """
    shape = ("N", *input_shape)
    try:
        outputs = _tried(network, input_shape)
    except Exception as error:
        written = ", ".join(str(size) for size in shape)
        raise SettingError(
            f"network must take inputs of the data's shape ({written}), but {type(network).__name__} fails on them: "
            f"{_brief(error)}"
        ) from error
    check_outputs(outputs, num_outputs)


def _tried(network: nn.Module, input_shape: Sequence[int]) -> Any:
    tensor = next((parameter for parameter in network.parameters() if parameter.is_floating_point()), torch.zeros(()))
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                # Not the compiled call, which would be compiled for these two samples.
                return network.forward(torch.zeros(2, *input_shape, dtype=tensor.dtype, device=tensor.device))
            except Exception:
                # Inputs may be tokens: an embedding needs integers.
                if not any(isinstance(module, nn.Embedding) for module in network.modules()):
                    raise
                return network.forward(torch.zeros(2, *input_shape, dtype=torch.int64, device=tensor.device))
    finally:
        for module, mode in modes.items():
            module.training = mode


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def check_outputs(outputs: Any, num_outputs: int) -> None:
    """Raises unless outputs are (N, num_outputs), or (N,) for one.

    Args:
        num_outputs: Number of outputs that the task needs.

    Raises:
        SettingError: If the outputs have another shape.

    >>> check_outputs(torch.zeros(2, 1000), 10)
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: network must return outputs (N, 10), as the data and the task need, but ...
    """
    if isinstance(outputs, Tensor):
        if outputs.shape[1:] == (num_outputs,) or (outputs.ndim == 1 and num_outputs == 1):
            return
        returned = f"({', '.join(['N', *(str(size) for size in outputs.shape[1:])])})"
    else:
        returned = f"a {type(outputs).__name__}"
    raise SettingError(
        f"network must return outputs (N, {num_outputs}), as the data and the task need, but returns {returned}"
    )
