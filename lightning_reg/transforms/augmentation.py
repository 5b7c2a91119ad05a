"""Augmentation of images: batched, on the device, with an independent draw for every sample."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import log, radians
from random import Random

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg.functional.batch.color import blur
from lightning_reg.functional.batch.geometry import flip_rotate_shift, resized_crop
from lightning_reg.settings import SettingError, check_count, check_range
from lightning_reg.transforms.draws import box_sizes, generator_of, scaled_to_unit
from lightning_reg.transforms.erasing import RandomErasing
from lightning_reg.transforms.jitter import ColorJitter

__all__ = ["AdvancedAugmentation", "Augmentation", "BasicAugmentation"]

_PORTION = 2**19  # numbers processed at a time on a CPU: they stay in its cache


class Augmentation(ABC):
    """An augmentation: a function of stored images and of a random stream."""

    @property
    def moves_pixels(self) -> bool:
        """Whether what an image shows may be moved in it, so that what is known of single pixels no longer holds."""
        return True

    @abstractmethod
    def __call__(self, images: Tensor, *, stream: Random) -> Tensor:
        """Returns augmented images, of the same shape, floats on [0, 1]; the argument isn't changed.

        Args:
            images: (N, C, H, W), uint8, or floats on [0, 1].
            stream: Source of random numbers.
        """

    def after_normalization(self, images: Tensor, *, stream: Random) -> Tensor:
        """Applies the changes that come after normalization; none by default.

        Args:
            images: (N, C, H, W), normalized floats.
            stream: Source of random numbers.
        """
        return images


class BasicAugmentation(Augmentation):
    """Flips, a small rotation, a crop from the image with a border, color jitter, and now and then no color.

    Every sample draws independently, with the distribution of torchvision's ``RandomHorizontalFlip``,
    ``RandomVerticalFlip``, ``RandomRotation``, ``RandomCrop(padding=...)``, ``ColorJitter`` and ``RandomGrayscale``,
    one after the other. Flips, rotation and crop are one read of the stored bytes; random numbers are drawn on the host
    and sent to the device once per batch.

    Args:
        horizontal_flip_prob: Probability that an image is mirrored, left to right, in [0, 1].
        vertical_flip_prob: Probability that an image is mirrored, top to bottom, in [0, 1].
        degrees: Largest rotation to either side in degrees, in [0, 180]; pixels from outside are black.
        padding: Width in pixels of the black border that is added before a part of the image's size is cropped.
        brightness: Largest change of brightness, at least 0: factors are uniform in 1 ± this, but not below 0.
        contrast: Largest change of contrast, likewise.
        saturation: Largest change of saturation, likewise; like hue and grayscale, it needs three channels.
        hue: Largest shift of hue to either side, as a fraction of the color circle, in [0, 0.5].
        grayscale_prob: Probability that an image becomes gray, in [0, 1].

    Raises:
        SettingError: If a number is out of range.

    >>> augment = BasicAugmentation(vertical_flip_prob=0.0)
    >>> augment(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), stream=Random(0)).shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        *,
        horizontal_flip_prob: float = 0.5,
        vertical_flip_prob: float = 0.5,
        degrees: float = 15.0,
        padding: int = 4,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.1,
        grayscale_prob: float = 0.1,
    ) -> None:
        check_range("horizontal_flip_prob", horizontal_flip_prob, low=0, high=1)
        check_range("vertical_flip_prob", vertical_flip_prob, low=0, high=1)
        check_range("degrees", degrees, low=0, high=180)
        check_count("padding", padding, low=0)
        self.horizontal_flip_prob = horizontal_flip_prob
        self.vertical_flip_prob = vertical_flip_prob
        self.degrees = degrees
        self.padding = padding
        self.jitter = ColorJitter(
            brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, grayscale_prob=grayscale_prob
        )

    @override
    def __call__(self, images: Tensor, *, stream: Random) -> Tensor:
        generator = generator_of(stream)
        count = len(images)
        numbers = torch.rand(5, count, generator=generator)
        flip_probs = torch.tensor([[self.horizontal_flip_prob], [self.vertical_flip_prob]])
        flips = (numbers[:2] < flip_probs).float()
        angles = (2 * numbers[2:3] - 1) * radians(self.degrees)
        shifts = (numbers[3:] * (2 * self.padding + 1)).floor() - self.padding
        drawn = self.jitter.draw(count, images.shape[1], generator)
        # One asynchronous transfer from the host.
        rows = torch.cat((flips, angles, shifts, drawn.rows)).to(images.device, non_blocking=True)

        def changed(images: Tensor, rows: Tensor) -> Tensor:
            moved = flip_rotate_shift(images, rows[:2].T, rows[2], rows[3:5].T)
            return drawn.apply_(scaled_to_unit(moved), rows[5:])

        return _in_portions(changed, images, rows)


class AdvancedAugmentation(Augmentation):
    """A part of the image, stretched; a flip, strong color jitter, blur, and a box erased: for photographs.

    Every sample draws independently, with the distribution of torchvision's ``RandomResizedCrop``,
    ``RandomHorizontalFlip``, ``RandomApply([ColorJitter])``, ``RandomGrayscale``, ``RandomApply([GaussianBlur])`` and,
    after normalization, ``RandomErasing``, one after the other. Images whose object has to be whole to be recognized,
    such as digits, need a larger ``smallest_crop``.

    Args:
        smallest_crop: Smallest crop as a fraction of an image's area, in (0, 1]; the largest is all of it. Its width is
            3/4 to 4/3 of its height.
        horizontal_flip_prob: Probability that an image is mirrored, left to right, in [0, 1].
        brightness: Largest change of brightness, at least 0: factors are uniform in 1 ± this, but not below 0.
        contrast: Largest change of contrast, likewise.
        saturation: Largest change of saturation, likewise; like hue and grayscale, it needs three channels.
        hue: Largest shift of hue to either side, as a fraction of the color circle, in [0, 0.5].
        jitter_prob: Probability that an image's colors are jittered at all, in [0, 1].
        grayscale_prob: Probability that an image becomes gray, in [0, 1].
        blur_prob: Probability that an image is blurred, in [0, 1], by a Gaussian of σ 0.1 to 2 pixels, whose kernel is
            a tenth of the shorter side wide.
        erasing_prob: Probability that a box is set to 0 after normalization, in [0, 1]: 0.02 to 0.33 of the area, its
            height 0.3 to 3.3 of its width.

    Raises:
        SettingError: If a number is out of range.

    >>> augment = AdvancedAugmentation(erasing_prob=0.0)
    >>> augment(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), stream=Random(0)).shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        *,
        smallest_crop: float = 0.08,
        horizontal_flip_prob: float = 0.5,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        jitter_prob: float = 0.8,
        grayscale_prob: float = 0.2,
        blur_prob: float = 0.5,
        erasing_prob: float = 0.25,
    ) -> None:
        check_range("smallest_crop", smallest_crop, low=0, high=1, low_open=True)
        check_range("horizontal_flip_prob", horizontal_flip_prob, low=0, high=1)
        check_range("blur_prob", blur_prob, low=0, high=1)
        check_range("erasing_prob", erasing_prob, low=0, high=1)
        self.smallest_crop = smallest_crop
        self.horizontal_flip_prob = horizontal_flip_prob
        self.blur_prob = blur_prob
        self.erasing_prob = erasing_prob
        self.jitter = ColorJitter(
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            grayscale_prob=grayscale_prob,
            prob=jitter_prob,
        )

    @override
    def __call__(self, images: Tensor, *, stream: Random) -> Tensor:
        height, width = images.shape[-2:]
        if min(height, width) < 2:
            raise SettingError(f"augment must have images of at least 2×2, but they are {height}×{width}")
        generator = generator_of(stream)
        count = len(images)
        numbers = torch.rand(5, count, generator=generator)
        heights, widths, fits = box_sizes(
            count, (height, width), (self.smallest_crop, 1.0), (log(3 / 4), log(4 / 3)), generator
        )
        whole = whole_within(height, width)  # where no box fits, the largest one of these shapes in the center
        heights, widths = torch.where(fits, heights, whole[0]), torch.where(fits, widths, whole[1])
        tops = torch.where(fits, (numbers[0] * (height - heights + 1)).floor(), (height - whole[0]) // 2)
        lefts = torch.where(fits, (numbers[1] * (width - widths + 1)).floor(), (width - whole[1]) // 2)
        mirrored = (numbers[2] < self.horizontal_flip_prob).float()
        sigmas = torch.where(numbers[3] < self.blur_prob, 0.1 + 1.9 * numbers[4], 0.0)
        drawn = self.jitter.draw(count, images.shape[1], generator)
        own = torch.stack((tops, lefts, heights, widths, mirrored, sigmas))
        rows = torch.cat((own, drawn.rows)).to(images.device, non_blocking=True)

        def changed(images: Tensor, rows: Tensor) -> Tensor:
            cut = resized_crop(scaled_to_unit(images), rows[:4].T, rows[4])
            jittered = drawn.apply_(cut, rows[6:])
            return blur(jittered, rows[5], kernel_size(height, width)) if self.blur_prob else jittered

        return _in_portions(changed, images, rows)

    @override
    def after_normalization(self, images: Tensor, *, stream: Random) -> Tensor:
        erased = RandomErasing(prob=self.erasing_prob).draw(images, stream=stream)
        return images if erased is None else erased.change(images)


def _in_portions(change: Callable[[Tensor, Tensor], Tensor], images: Tensor, rows: Tensor) -> Tensor:
    """Changes images by their draws (..., N), a few at a time for photographs on a CPU."""
    most = len(images)
    if images.device.type == "cpu" and most:
        most = max(_PORTION // images[0].numel(), 1)
    if most >= len(images):
        return change(images, rows)
    return torch.cat(
        [change(*part) for part in zip(torch.split(images, most), torch.split(rows, most, -1), strict=True)]
    )


def kernel_size(height: int, width: int) -> int:
    """Returns the width of a Gaussian's kernel: a tenth of the shorter side, odd, at least 3.

    Args:
        height: Height of the images, in pixels.
        width: Width of the images, in pixels.
    """
    return max(3, round(min(height, width) / 10) // 2 * 2 + 1)


def whole_within(height: int, width: int) -> tuple[int, int]:
    """Returns height and width of the largest box in an image that is 3/4 to 4/3 as wide as high.

    Args:
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.

    >>> whole_within(32, 32), whole_within(30, 60)
    ((32, 32), (30, 40))
    """
    return min(height, round(width / (3 / 4))), min(width, round(height * (4 / 3)))
