"""What happens to a batch on the device, between the loader and the network."""

from lightning_reg.transforms.mixing import Mixing, Mixup
from lightning_reg.transforms.normalize import normalize_pictures

__all__ = ["Mixing", "Mixup", "normalize_pictures"]
