"""What happens to a batch on the device, between the loader and the network."""

from lightning_reg.transforms.augmentation import AdvancedAugmentation, Augmentation, BasicAugmentation
from lightning_reg.transforms.mixing import Mixing, Mixup
from lightning_reg.transforms.normalize import normalize_pictures
from lightning_reg.transforms.per_sample import PerSampleAugmentation
from lightning_reg.transforms.presets import PRESETS, preset

__all__ = [
    "PRESETS",
    "AdvancedAugmentation",
    "Augmentation",
    "BasicAugmentation",
    "Mixing",
    "Mixup",
    "PerSampleAugmentation",
    "normalize_pictures",
    "preset",
]
