"""Transforms of batches on the device, between the loader and the network."""

from lightning_reg.transforms.augmentation import AdvancedAugmentation, Augmentation, BasicAugmentation
from lightning_reg.transforms.cutmix import CutMix
from lightning_reg.transforms.erasing import Cutout, RandomErasing
from lightning_reg.transforms.mixing import Draw, Mixing
from lightning_reg.transforms.mixup import Mixup
from lightning_reg.transforms.mixup_or_cutmix import MixupOrCutMix
from lightning_reg.transforms.normalize import normalize_images
from lightning_reg.transforms.per_sample import PerSampleAugmentation
from lightning_reg.transforms.presets import PRESETS, preset
from lightning_reg.transforms.rows import RowCutMix, RowCutout, RowMixing

__all__ = [
    "PRESETS",
    "AdvancedAugmentation",
    "Augmentation",
    "BasicAugmentation",
    "CutMix",
    "Cutout",
    "Draw",
    "Mixing",
    "Mixup",
    "MixupOrCutMix",
    "PerSampleAugmentation",
    "RandomErasing",
    "RowCutMix",
    "RowCutout",
    "RowMixing",
    "normalize_images",
    "preset",
]
