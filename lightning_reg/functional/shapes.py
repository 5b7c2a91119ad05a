"""Checks of tensor shapes, with clear error messages."""

from collections.abc import Sequence

from torch import Tensor

from lightning_reg.settings import SettingError

__all__ = ["check_several_values", "check_shape", "check_trailing_shape", "check_with_channels"]


def check_shape(name: str, tensor: Tensor | None, shape: Sequence[int]) -> None:
    """Raises unless a tensor has exactly this shape, or is None.

    Args:
        name: Name of the argument, as the user writes it.
        tensor: The tensor to check, or None.
        shape: Expected shape.

    Raises:
        SettingError: If the tensor has another shape.

    >>> import torch
    >>> check_shape("weight", torch.ones(5), (4,))
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: weight must have the shape (4,), but has (5,)
    """
    if tensor is not None and tuple(tensor.shape) != tuple(shape):
        raise SettingError(f"{name} must have the shape {tuple(shape)}, but has {tuple(tensor.shape)}")


def check_trailing_shape(inputs: Tensor, shape: Sequence[int]) -> None:
    """Raises unless the shape of the inputs ends with this one.

    Args:
        inputs: (..., *shape).
        shape: Sizes of the last dimensions; at least one.

    Raises:
        SettingError: If the inputs' shape ends with other sizes.

    >>> import torch
    >>> check_trailing_shape(torch.ones(2, 5), (4,))
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: inputs must have a shape that ends with (4,), but have (2, 5)
    """
    if not shape:
        raise SettingError("normalized_shape must name at least one dimension, but is ()")
    if tuple(inputs.shape[-len(shape) :]) != tuple(shape):
        raise SettingError(f"inputs must have a shape that ends with {tuple(shape)}, but have {tuple(inputs.shape)}")


def check_with_channels(inputs: Tensor, num_channels: int | None = None, *, positions: bool = False) -> None:
    """Raises unless inputs are a batch with channels in the second dimension.

    Args:
        inputs: (N, C, ...).
        num_channels: Expected number of channels C; None for any.
        positions: Whether there must be at least one dimension after the channels.

    Raises:
        SettingError: If there are too few dimensions, or another number of channels.

    >>> import torch
    >>> check_with_channels(torch.ones(4), 4)
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: inputs must have the shape (N, 4, ...), but have (4,)
    """
    fits = inputs.ndim >= (3 if positions else 2) and (num_channels is None or inputs.shape[1] == num_channels)
    if not fits:
        channels = "C" if num_channels is None else num_channels
        wanted = f"(N, {channels}, L, ...)" if positions else f"(N, {channels}, ...)"
        raise SettingError(f"inputs must have the shape {wanted}, but have {tuple(inputs.shape)}")


def check_several_values(inputs: Tensor) -> None:
    """Raises unless a channel has at least two values: normalizing a single one would always give 0.

    Args:
        inputs: (N, C, ...).

    Raises:
        SettingError: If there is only one value per channel.

    >>> import torch
    >>> check_several_values(torch.ones(1, 4))
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: inputs must have more than one value per channel in training, but have the
    shape (1, 4)
    """
    if inputs.numel() < 2 * inputs.shape[1]:
        raise SettingError(
            f"inputs must have more than one value per channel in training, but have the shape {tuple(inputs.shape)}"
        )
