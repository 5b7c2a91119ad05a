"""Cutout and random erasing: a box of every image is filled."""

import math
from functools import partial
from random import Random

from torch import Tensor
from typing_extensions import override

from lightning_reg.functional.batch.boxes import Box, fill_boxes, random_box
from lightning_reg.settings import SettingError, check_count, check_range
from lightning_reg.transforms.mixing import Draw, Mixing, spatial_size

__all__ = ["Cutout", "RandomErasing"]

NOTHING: Box = (0, 0, 0, 0)


class Cutout(Mixing):
    """Fills a square of every image, around a center that may be any pixel; targets stay as they are.

    Args:
        size: Side of the square: pixels, or a fraction of the shorter side in [0, 1]. It is clipped at the border; 0
            for no square.
        prob: Probability that an image gets a box, in [0, 1].
        value: Fill value; 0 is the mean of normalized images.

    Raises:
        SettingError: If an argument is out of range.

    Reference:
        Terrance DeVries, Graham W. Taylor: Improved Regularization of Convolutional Neural Networks with Cutout, 2017,
        arXiv:1708.04552.

    >>> import torch
    >>> mixed, _ = Cutout(size=2)(torch.ones(4, 1, 8, 8), torch.zeros(4), stream=Random(0))
    >>> bool(((mixed == 0).sum((1, 2, 3)) <= 4).all())
    True
    """

    needs_partner = False
    input_kind = "images"

    def __init__(self, *, size: int | float = 0.5, prob: float = 1.0, value: float = 0.0) -> None:
        if isinstance(size, float):
            check_range("size", size, low=0, high=1)
        else:
            check_count("size", size, low=0)
        check_range("prob", prob, low=0, high=1)
        check_range("value", value)
        self.size = size
        self.prob = prob
        self.value = value

    @override
    def draw(self, inputs: Tensor, *, stream: Random) -> Draw | None:
        within = spatial_size(inputs, "Cutout")
        if not self.size:
            return None
        side = self.size if isinstance(self.size, int) else max(round(self.size * min(within)), 1)
        boxes = [
            random_box(stream, side, side, within=within) if stream.random() < self.prob else NOTHING
            for _ in range(len(inputs))
        ]
        return _fill(boxes, self.value)


class RandomErasing(Mixing):
    """Fills a rectangle of some images, of a random area and shape that lies within; targets stay as they are.

    Args:
        prob: Probability that an image gets a box, in [0, 1].
        scale: Smallest and largest area, as fractions of the image's. A box is smaller than the image in either
            direction, as torchvision's, so that an area of 1 is never drawn.
        ratio: Smallest and largest height divided by width, both positive; log-uniform between them, as in torchvision.
        value: Fill value; 0 is the mean of normalized images.

    Raises:
        SettingError: If an argument is out of range.

    Reference:
        Zhun Zhong, Liang Zheng, Guoliang Kang, Shaozi Li, Yi Yang: Random Erasing Data Augmentation, AAAI 2020,
        arXiv:1708.04896.

    >>> import torch
    >>> mixed, _ = RandomErasing(prob=1.0)(torch.ones(4, 1, 32, 32), torch.zeros(4), stream=Random(0))
    >>> bool(((mixed == 0).sum((1, 2, 3)) > 0).all())
    True
    """

    needs_partner = False
    input_kind = "images"
    ATTEMPTS = 10
    """Number of attempts to draw a shape that fits into the image, before the image is left alone."""

    def __init__(
        self,
        *,
        prob: float = 0.5,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        value: float = 0.0,
    ) -> None:
        check_range("prob", prob, low=0, high=1)
        for name, pair in (("scale", scale), ("ratio", ratio)):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise SettingError(f"{name} must be two numbers, the least and the greatest, but is {pair!r}")
            for number in pair:
                check_range(name, number, low=0, low_open=name == "ratio", high=1 if name == "scale" else math.inf)
            if pair[1] < pair[0]:
                raise SettingError(f"{name} must begin with the smaller number, but is {pair[0]}, {pair[1]}")
        check_range("value", value)
        self.prob = prob
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)
        self.value = value

    @override
    def draw(self, inputs: Tensor, *, stream: Random) -> Draw | None:
        within = spatial_size(inputs, type(self).__name__)
        boxes = [self._box(within, stream) if stream.random() < self.prob else NOTHING for _ in range(len(inputs))]
        return _fill(boxes, self.value)

    def _box(self, within: tuple[int, int], stream: Random) -> Box:
        height, width = within
        for _ in range(self.ATTEMPTS):
            area = height * width * stream.uniform(*self.scale)
            shape = math.exp(stream.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            rows, columns = round((area * shape) ** 0.5), round((area / shape) ** 0.5)
            if rows < height and columns < width:
                top, left = stream.randrange(height - rows + 1), stream.randrange(width - columns + 1)
                return top, top + rows, left, left + columns
        return NOTHING


def _fill(boxes: list[Box], value: float) -> Draw | None:
    if all(box == NOTHING for box in boxes):
        return None
    return Draw(partial(fill_boxes, boxes=boxes, value=value))
