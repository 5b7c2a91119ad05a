"""Transforms of torchvision and others, applied to one sample at a time."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.settings import SettingError
from lightning_reg.transforms.augmentation import Augmentation
from lightning_reg.transforms.draws import scaled_to_unit
from lightning_reg.transforms.mixing import Mixing

__all__ = ["PerSampleAugmentation"]

# torchvision's transforms that change pixels where they are.
_IN_PLACE = """
    ColorJitter ConvertImageDtype GaussianBlur GaussianNoise Grayscale Identity JPEG RGB RandomAdjustSharpness
    RandomAutocontrast RandomChannelPermutation RandomEqualize RandomErasing RandomGrayscale RandomInvert
    RandomPhotometricDistort RandomPosterize RandomSolarize ToDtype
"""


class PerSampleAugmentation(Augmentation):
    """Applies transforms such as those of ``torchvision.transforms.v2`` to every sample by itself.

    Every sample gets its own draw, at the cost of one call each: several times slower than the batched augmentations.
    Transforms get images as bytes, on the device. The global random streams (torch's, numpy's and Python's) are seeded
    from the position in training, and restored afterwards.

    Args:
        transforms: Callables, applied in order to a tensor (C, H, W), uint8 at first; they return one of the same
            shape. Normalization follows and must not be among them.

    Raises:
        SettingError: If there are none, or one isn't callable, converts images to tensors, or normalizes.

    >>> augment = PerSampleAugmentation(transforms=[lambda image: 255 - image])
    >>> augment(torch.zeros(2, 3, 1, 1, dtype=torch.uint8), stream=Random(0)).unique()
    tensor([1.])
    """

    def __init__(self, *, transforms: Sequence[Callable[[Tensor], Any]]) -> None:
        if not isinstance(transforms, Iterable):
            raise SettingError(f"augment must be a list of callables, but is {transforms!r}")
        if not transforms:
            raise SettingError(
                "augment must have at least one transform in its list, but has none; leave it out instead"
            )
        for index, transform in enumerate(transforms):
            if not callable(transform) or isinstance(transform, type):
                raise SettingError(f"augment must be a list of callables, but entry {index} is {transform!r}")
            if isinstance(transform, (Augmentation, Mixing)):
                where = "as mix" if isinstance(transform, Mixing) else "as augment itself, without a list"
                raise SettingError(
                    f"augment must list callables that take one image, but entry {index}, {transform!r}, takes a "
                    f"batch: give it {where}"
                )
            if type(transform).__name__ in ("ToTensor", "PILToTensor"):
                raise SettingError(
                    f"augment must not hold {type(transform).__name__}, entry {index}: images come as tensors "
                    "(C, H, W) of uint8 and leave as floats on [0, 1]; leave it out"
                )
            if type(transform).__name__ == "Normalize":
                raise SettingError(
                    f"augment must not normalize, but entry {index} is {transform!r}: the data module does that "
                    "afterwards, as its normalization says"
                )
        self.transforms = list(transforms)

    @property
    @override
    def moves_pixels(self) -> bool:
        return any(map(_moves_pixels, self.transforms))

    @override
    def __call__(self, images: Tensor, *, stream: Random) -> Tensor:
        with _seeded_global_streams(stream, images.device):
            changed = [self._changed(image) for image in images]
        return scaled_to_unit(torch.stack(changed) if changed else images)

    def _changed(self, image: Tensor) -> Tensor:
        changed: Any = image
        for index, transform in enumerate(self.transforms):
            changed = _applied(index, transform, changed)
        if not isinstance(changed, Tensor) or changed.shape != image.shape:
            given = f"a tensor {tuple(changed.shape)}" if isinstance(changed, Tensor) else f"a {type(changed).__name__}"
            raise SettingError(f"augment must return images (C, H, W) of {tuple(image.shape)}, but returned {given}")
        return changed


def _moves_pixels(transform: Any) -> bool:
    """Whether a transform may move pixels; all do that aren't known not to."""
    parts = transform if isinstance(transform, nn.Sequential) else getattr(transform, "transforms", None)
    if parts is not None:  # one after the other, or one of them
        return any(map(_moves_pixels, parts))
    kind = type(transform)
    return not kind.__module__.startswith("torchvision.") or kind.__name__ not in _IN_PLACE.split()


def _applied(index: int, transform: Callable[[Any], Any], image: Any) -> Any:
    try:
        return transform(image)
    except Exception as error:
        if not type(transform).__module__.startswith("torchvision."):
            raise  # the user's own code, whose traceback should be seen
        raise SettingError(
            f"augment must be transforms of tensors, but its entry {index}, {transform!r}, fails with one of "
            f"{tuple(getattr(image, 'shape', ()))}: {error}"
        ) from error


@contextmanager
def _seeded_global_streams(stream: Random, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type != "cpu" else []
    pythons, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.default_generator.manual_seed(stream.getrandbits(63))
        if devices:  # only this device's; torch.manual_seed would also seed others, which aren't restored
            backend = getattr(torch, device.type)
            with backend.device(device) if hasattr(backend, "device") else nullcontext():  # mps has a single device
                backend.manual_seed(stream.getrandbits(63))
        random.seed(stream.getrandbits(63))
        np.random.seed(stream.getrandbits(32))
        try:
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)
