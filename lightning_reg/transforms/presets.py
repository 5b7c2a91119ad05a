"""Augmentations by name."""

from collections.abc import Collection

from lightning_reg.settings import check_choice
from lightning_reg.transforms.augmentation import AdvancedAugmentation, Augmentation, BasicAugmentation
from lightning_reg.transforms.per_sample import PerSampleAugmentation

__all__ = ["PRESETS", "preset"]

PRESETS = ("none", "basic", "advanced", "randaugment", "trivialaugment", "augmix")
"""Names of augmentations."""


def preset(
    name: str, *, input_shape: tuple[int, int, int], flips: Collection[str] = ("horizontal", "vertical")
) -> tuple[Augmentation | None, list[str]]:
    """Returns an augmentation by name, without the changes that would harm images of this kind.

    - ``none``: no augmentation.
    - ``basic``: :class:`BasicAugmentation`. Small images get a border of an eighth of their shorter side, rounded up,
      where that is less than four pixels.
    - ``advanced``: :class:`AdvancedAugmentation`.
    - ``randaugment``, ``trivialaugment``, ``augmix``: torchvision's ``RandAugment``, ``TrivialAugmentWide`` and
      ``AugMix`` with its defaults, by :class:`PerSampleAugmentation`.

    Args:
        name: Name of the preset, one of these.
        input_shape: (C, H, W) of an image.
        flips: Flips that preserve an image's class: horizontal, vertical.

    Returns:
        The augmentation, and the names of its changes that are off, for a message.

    Raises:
        SettingError: If the name is unknown.

    >>> preset("basic", input_shape=(1, 28, 28), flips=())[1]
    ['horizontal flips', 'vertical flips', 'saturation, hue and grayscale (one channel)']
    """
    check_choice("augment", name, PRESETS)
    if name == "none":
        return None, []
    if name not in ("basic", "advanced"):
        from torchvision.transforms import v2

        transforms = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide, "augmix": v2.AugMix}
        return PerSampleAugmentation(transforms=[transforms[name]()]), []
    used = ("horizontal", "vertical") if name == "basic" else ("horizontal",)
    off = [f"{flip} flips" for flip in used if flip not in flips]
    channels, height, width = input_shape
    if channels != 3:
        off.append(f"saturation, hue and grayscale ({'one channel' if channels == 1 else f'{channels} channels'})")
    horizontal = 0.5 if "horizontal" in flips else 0.0
    if name == "advanced":
        return AdvancedAugmentation(horizontal_flip_prob=horizontal), off
    return BasicAugmentation(
        horizontal_flip_prob=horizontal,
        vertical_flip_prob=0.5 if "vertical" in flips else 0.0,
        padding=min(4, -(-min(height, width) // 8)),
    ), off
