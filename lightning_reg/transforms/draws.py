"""Random numbers for whole batches, and sizes of boxes drawn from them."""

from random import Random

import torch
from torch import Tensor

__all__ = ["box_sizes", "generator_of", "scaled_to_unit"]


def generator_of(stream: Random) -> torch.Generator:
    """Returns a generator on the host that depends on the stream alone.

    Args:
        stream: Random stream, from which the seed is drawn. The seed's lowest 32 bits, which are all that torch's
            generator uses, are as random as the others.
    """
    return torch.Generator().manual_seed(stream.getrandbits(63))


def box_sizes(
    count: int,
    size: tuple[int, int],
    areas: tuple[float, float],
    log_ratios: tuple[float, float],
    generator: torch.Generator,
    *,
    attempts: int = 10,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws sizes of boxes: for each, the first of several attempts that fits into the image, as torchvision does.

    Args:
        count: Number N of boxes.
        size: Height and width of the images, in pixels.
        areas: Smallest and largest fraction of the image's area, between which a box's is uniform.
        log_ratios: Smallest and largest logarithm of width divided by height, likewise.
        generator: Source of random numbers.
        attempts: Number of attempts for each box.

    Returns:
        Heights and widths, whole numbers as floats, and whether they fit into the image, (N,) each.
    """
    height, width = size
    numbers = torch.rand(2, attempts, count, generator=generator)
    pixels = height * width * (areas[0] + (areas[1] - areas[0]) * numbers[0])
    ratios = (log_ratios[0] + (log_ratios[1] - log_ratios[0]) * numbers[1]).exp()
    heights, widths = (pixels / ratios).sqrt().round_(), (pixels * ratios).sqrt().round_()
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = fits.to(torch.uint8).argmax(0, keepdim=True)
    heights, widths, fits = (drawn.gather(0, first).squeeze(0) for drawn in (heights, widths, fits))
    return heights, widths, fits


def scaled_to_unit(images: Tensor) -> Tensor:
    """Returns images as floats on [0, 1]; floats pass through.

    Args:
        images: Tensor of any shape, uint8 or floating.
    """
    return images if images.is_floating_point() else images.float().mul_(1 / 255)
