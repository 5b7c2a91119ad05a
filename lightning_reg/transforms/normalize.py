"""Normalization of images."""

import torch
from torch import Tensor

__all__ = ["normalize_images"]


def normalize_images(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scales uint8 images to [0, 1], then all to mean 0 and standard deviation 1 per channel, in one pass.

    Args:
        images: (N, C, H, W), uint8, or floats on [0, 1].
        mean: (C,), mean per channel on the scale of [0, 1], on the images' device.
        std: (C,), standard deviation per channel, likewise.

    Returns:
        (N, C, H, W), of the mean's dtype.

    >>> normalize_images(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), torch.tensor([0.5]), torch.tensor([0.25]))
    tensor([[[[2.0000]]]])
    """
    largest = 1 if images.is_floating_point() else 255
    scale = (1 / (largest * std)).view(-1, 1, 1)
    shift = (-mean / std).view(-1, 1, 1)
    return torch.addcmul(shift, images.to(mean.dtype), scale)
