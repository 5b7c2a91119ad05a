"""From stored pictures to what a network reads."""

import torch
from torch import Tensor

__all__ = ["normalize_pictures"]


def normalize_pictures(pictures: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scales uint8 pictures to [0, 1], then all to mean 0 and standard deviation 1 per channel, in one pass.

    Args:
        pictures: (N, C, H, W), uint8, or floats on [0, 1].
        mean: (C,), on the scale of [0, 1], on the pictures' device.
        std: (C,), likewise.

    Returns:
        (N, C, H, W), of the mean's dtype.

    >>> normalize_pictures(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), torch.tensor([0.5]), torch.tensor([0.25]))
    tensor([[[[2.0000]]]])
    """
    largest = 1 if pictures.is_floating_point() else 255
    scale = (1 / (largest * std)).view(-1, 1, 1)
    shift = (-mean / std).view(-1, 1, 1)
    return torch.addcmul(shift, pictures.to(mean.dtype), scale)
