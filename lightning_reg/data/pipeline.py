"""Processing of image batches on the device: augmentation and normalization."""

from collections.abc import Callable, Collection, Sequence
from random import Random

import torch
from torch import Tensor

from lightning_reg.settings import SettingError
from lightning_reg.transforms import PRESETS, Augmentation, PerSampleAugmentation, normalize_images, preset

__all__ = ["ImagePipeline", "chosen_augmentation"]

Augment = Augmentation | str | Sequence[Callable[[Tensor], Tensor]]
"""A preset by name, an augmentation, or transforms that are applied to one sample at a time."""


def chosen_augmentation(
    augment: Augment | None, *, input_shape: tuple[int, int, int], flips: Collection[str]
) -> tuple[Augmentation | None, list[str]]:
    """Returns the augmentation of a setting, and the names of its parts that are off.

    Args:
        augment: The setting; None or ``none`` for no augmentation.
        input_shape: (C, H, W) of an image.
        flips: Flips that preserve an image's class: horizontal, vertical. They apply to presets alone: an augmentation
            object has its own.

    Raises:
        SettingError: If the setting is none of these.
    """
    if augment is None or isinstance(augment, Augmentation):
        return augment, []
    if isinstance(augment, str):
        return preset(augment, input_shape=input_shape, flips=flips)
    if isinstance(augment, (list, tuple)):
        return PerSampleAugmentation(transforms=augment), []
    raise SettingError(
        f"augment must be one of {', '.join(PRESETS)}, an Augmentation or a list of transforms, but is {augment!r}"
    )


class ImagePipeline:
    """Turns stored images into inputs of a network: augmented in training, and normalized always."""

    def __init__(self, augmentation: Augmentation | None) -> None:
        self.augmentation = augmentation
        self.mean_and_std: tuple[Tensor, Tensor] | None = None

    def __call__(self, images: Tensor, stream: Callable[[str], Random] | None) -> Tensor:
        """Returns normalized floats.

        Args:
            images: (N, C, H, W), uint8, or floats on [0, 1].
            stream: Function from a name to the random stream of this training batch; None for other batches.
        """
        if self.mean_and_std is None:  # not set up yet
            return images
        mean, std = (values.to(images.device, non_blocking=True) for values in self.mean_and_std)
        self.mean_and_std = mean, std
        if self.augmentation is None or stream is None:
            return normalize_images(images, mean, std)
        with torch.no_grad():
            augmented = self.augmentation(images, stream=stream("augment"))
            normalized = normalize_images(augmented, mean, std)
            return self.augmentation.after_normalization(normalized, stream=stream("erase"))
