"""Geometric operations on images: a whole batch at once, with parameters for each image."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["flip_rotate_shift", "resized_crop"]


def flip_rotate_shift(images: Tensor, flips: Tensor, angles: Tensor, shifts: Tensor) -> Tensor:
    r"""Flips, then rotates, then crops a shifted part, all in one read; pixels from outside are 0.

    A pixel at column x and row y of the result, counted from the image's center, is the nearest one to

    .. math:: R(a) \, (x + s_x, \; y + s_y)^\top

    in the flipped image, where R(a) is a rotation by the angle a. Cropping a part of the image's size out of the image
    with a border of p pixels is a shift by −p to p.

    Args:
        images: (N, C, H, W), of any dtype.
        flips: (N, 2), 1 or 0: whether the image is mirrored left to right, and top to bottom.
        angles: (N,), angles a in radians, counterclockwise.
        shifts: (N, 2), whole numbers of pixels by which the part is shifted down, and to the right.

    Returns:
        (N, C, H, W), of the same dtype.

    >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> flip_rotate_shift(image, torch.tensor([[1, 0]]), torch.zeros(1), torch.tensor([[0, 1]]))[0, 0]
    tensor([[1., 0.],
            [3., 0.]])
    """
    n, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device) + shifts[:, :1]  # (N, H), in the rotated image
    columns = torch.arange(width, device=images.device) + shifts[:, 1:]  # (N, W)
    center_y, center_x = (height - 1) / 2, (width - 1) / 2
    down, right = rows - center_y, columns - center_x
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    # Mirroring changes the sign of a source coordinate, counted from the center.
    across, upright = (1 - 2 * flips.to(angles.dtype)).chunk(2, dim=1)
    # Positions in the border of the rotated image are moved far outside.
    far = 4 * (height + width)
    beside = (columns < 0) | (columns >= width)
    above_or_below = (rows < 0) | (rows >= height)
    from_x = (across * cos * right + center_x).masked_fill_(beside, far).unsqueeze(1)  # (N, 1, W)
    from_y = (upright * cos * down + center_y).masked_fill_(above_or_below, far).unsqueeze(2)  # (N, H, 1)
    source_x = from_x - (across * sin * down).unsqueeze(2)  # (N, H, W)
    source_y = from_y + (upright * sin * right).unsqueeze(1)
    # One pixel of border holds the zeros: rows -1 and H, columns -1 and W.
    source_x.round_().clamp_(-1, width)
    source_y.round_().clamp_(-1, height)
    if (height + 2) * (width + 2) > 2**24:  # above it, float32 doesn't represent all integers
        source_x, source_y = source_x.long(), source_y.long()
    index = source_y.add_(1).mul_(width + 2).add_(source_x).add_(1).long().flatten(1).unsqueeze(1)
    bordered = F.pad(images, (1, 1, 1, 1)).flatten(2)
    return bordered.gather(2, index.expand(-1, channels, -1)).view(n, channels, height, width)


def resized_crop(images: Tensor, boxes: Tensor, mirrored: Tensor) -> Tensor:
    """Crops a box of every image and resizes it to the image's size, by bilinear interpolation.

    Args:
        images: (N, C, H, W), of a floating dtype.
        boxes: (N, 4), top, left, height and width in whole pixels; no larger than the image.
        mirrored: (N,), 1 or 0: whether the result is mirrored left to right.

    Returns:
        (N, C, H, W).

    >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> resized_crop(image, torch.tensor([[1, 0, 1, 2]]), torch.tensor([1]))[0, 0]
    tensor([[4., 3.],
            [4., 3.]])
    """
    height, width = images.shape[-2:]
    top, left, box_height, box_width = boxes.to(images.dtype).unsqueeze(-1).unbind(1)  # (N, 1) each

    def source(size: int, start: Tensor, length: Tensor) -> Tensor:
        """Returns the source coordinates of pixels, (N, size), clamped to the box's outermost ones."""
        centers = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) * length / size - 0.5
        return start + torch.minimum(centers.clamp(min=0), length - 1)

    columns = source(width, left, box_width)
    columns = torch.where(mirrored.bool().unsqueeze(1), columns.flip(1), columns)
    rows = source(height, top, box_height)
    # grid_sample counts from -1 to 1, from the center of the first pixel to that of the last.
    x, y = (2 * at / max(size - 1, 1) - 1 for at, size in ((columns, width), (rows, height)))
    shape = (-1, height, width)
    grid = torch.stack((x.unsqueeze(1).expand(shape), y.unsqueeze(2).expand(shape)), dim=-1)  # (N, H, W, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)
