"""What happens to a batch on the device, between the loader and the network."""

from lightning_reg.transforms.cutmix import CutMix
from lightning_reg.transforms.erasing import Cutout, RandomErasing
from lightning_reg.transforms.mixing import Draw, Mixing
from lightning_reg.transforms.mixup import Mixup
from lightning_reg.transforms.mixup_or_cutmix import MixupOrCutMix
from lightning_reg.transforms.normalize import normalize_pictures

__all__ = [
    "CutMix",
    "Cutout",
    "Draw",
    "Mixing",
    "Mixup",
    "MixupOrCutMix",
    "RandomErasing",
    "normalize_pictures",
]
