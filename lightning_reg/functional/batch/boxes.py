"""Rectangles in images: positions and filling."""

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

__all__ = ["Box", "box_around", "fill_boxes", "in_box", "random_box"]

Box = tuple[int, int, int, int]
"""Top, bottom, left and right of a rectangle; the second and the fourth are excluded."""


def box_around(row: int, column: int, height: int, width: int, *, within: tuple[int, int]) -> Box:
    """Returns the box of a given size around a center, clipped at the image's border: top, bottom, left, right.

    Args:
        row: Row of the box's center, in pixels.
        column: Column of the box's center, in pixels.
        height: Height of the box, in pixels.
        width: Width of the box, in pixels.
        within: Height and width of the image.

    >>> box_around(0, 5, 4, 4, within=(8, 8))
    (0, 2, 3, 7)
    """
    top, left = row - height // 2, column - width // 2
    return max(top, 0), min(top + height, within[0]), max(left, 0), min(left + width, within[1])


def random_box(stream: Random, height: int, width: int, *, within: tuple[int, int]) -> Box:
    """Returns a box around a random center, which may be any pixel, clipped at the border.

    Args:
        stream: Source of random numbers.
        height: Height of the box, in pixels.
        width: Width of the box, in pixels.
        within: Height and width of the image.

    >>> random_box(Random(0), 99, 99, within=(8, 6))
    (0, 8, 0, 6)
    """
    return box_around(stream.randrange(within[0]), stream.randrange(within[1]), height, width, within=within)


def in_box(boxes: Tensor, height: int, width: int) -> Tensor:
    """Returns a mask of the pixels in a box.

    Args:
        boxes: (..., 4), top, bottom, left, right; the second and the fourth excluded.
        height: Height H of the image.
        width: Width W of the image.

    Returns:
        (..., H, W), bool.

    >>> in_box(torch.tensor([0, 1, 1, 3]), 2, 3)
    tensor([[False,  True,  True],
            [False, False, False]])
    """
    top, bottom, left, right = boxes.unsqueeze(-1).unbind(-2)  # (..., 1) each
    rows, columns = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    vertical, horizontal = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return vertical.unsqueeze(-1) & horizontal.unsqueeze(-2)


def fill_boxes(images: Tensor, boxes: Sequence[Box], value: float) -> Tensor:
    """Fills a box of every image with one value.

    Args:
        images: (N, ..., H, W).
        boxes: N boxes, one for each image; an empty box leaves it as it is.
        value: Fill value.

    Returns:
        A new tensor of the images' shape and memory format.

    Reference:
        Terrance DeVries, Graham W. Taylor: Improved Regularization of Convolutional Neural Networks with Cutout, 2017,
        arXiv:1708.04552. Zhun Zhong, Liang Zheng, Guoliang Kang, Shaozi Li, Yi Yang: Random Erasing Data Augmentation,
        AAAI 2020, arXiv:1708.04896.

    >>> fill_boxes(torch.ones(1, 2, 2), [(0, 1, 0, 1)], 0.0)
    tensor([[[0., 1.],
             [1., 1.]]])
    """
    if images.device.type == "cpu":
        filled = images.clone()
        for index, (top, bottom, left, right) in enumerate(boxes):
            filled[index, ..., top:bottom, left:right] = value
        return filled
    # On a GPU every box would be a kernel launch, so one mask covers all of them.
    masks = in_box(torch.tensor(boxes).to(images.device, non_blocking=True), *images.shape[-2:])
    masks = masks.view(len(masks), *[1] * (images.ndim - 3), *masks.shape[1:])
    return images.clone().masked_fill_(masks, value)  # masked_fill alone wouldn't keep the memory format there
