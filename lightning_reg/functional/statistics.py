"""Statistics of tensors."""

import torch
from torch import Tensor

__all__ = ["channel_mean_and_std"]


def channel_mean_and_std(pictures: Tensor, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of byte pictures, on the scale of [0, 1].

    Exact, and in little memory: a picture of bytes has at most 256 values, so counts say everything.

    Args:
        pictures: (N, C, H, W), uint8.
        indices: (M,), which pictures count; all where None.

    Returns:
        Mean and standard deviation (of the population), (C,) each, float32. A channel that never changes gets a
        standard deviation of 1, so that dividing by it does nothing.

    >>> channel_mean_and_std(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    (tensor([0.5000]), tensor([0.5000]))
    """
    chosen = torch.arange(len(pictures)) if indices is None else indices
    counts = torch.zeros(pictures.shape[1], 256, dtype=torch.float64)
    for part in torch.split(chosen, 4096):
        channels = pictures[part].transpose(0, 1).flatten(1)  # (C, M · H · W)
        counts += torch.stack([torch.bincount(channel, minlength=256) for channel in channels])
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    std = (share * (values - mean.unsqueeze(1)).square()).sum(1).sqrt()
    return mean.float(), torch.where(std > 0, std, 1.0).float()
