"""Activation checkpointing, which runs parts of a step again in the backward pass, where no technique watches."""

import sys
from types import CodeType

import torch
import torch.utils.checkpoint

from lightning_reg.settings import SettingError

__all__ = ["is_checkpointed", "refuse_checkpointed", "will_have_gradients"]

_FIRST_PASS: CodeType = torch.utils.checkpoint.CheckpointFunction.forward.__code__


def is_checkpointed() -> bool:
    """Whether the caller runs within activation checkpointing; torch has no public API for it.

    >>> is_checkpointed()
    False
    """
    return any(code.co_filename == torch.utils.checkpoint.__file__ for code in _callers())


def will_have_gradients() -> bool:
    """Whether what is computed now has gradients, or gets them later; a loss that doesn't is a metric.

    The first pass of reentrant checkpointing computes without gradients.

    >>> with torch.no_grad():
    ...     will_have_gradients()
    False
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    return any(code is _FIRST_PASS for code in _callers())


def refuse_checkpointed(technique: str) -> None:
    """Raises if a loss is computed within activation checkpointing.

    Args:
        technique: Name of the technique that changes the loss.

    Raises:
        SettingError: If it is.
    """
    if not torch.compiler.is_compiling() and is_checkpointed():
        raise SettingError(
            f"the loss must be computed outside of activation checkpointing with {technique}, which doesn't see it "
            "where it is computed again; checkpoint the network alone"
        )


def _callers() -> list[CodeType]:
    codes, frame = [], sys._getframe(1)
    while frame is not None:
        codes.append(frame.f_code)
        frame = frame.f_back  # type: ignore[assignment]
    return codes
