"""Data modules: where pictures come from, how they are split, and a loader that fetches a batch at once."""

from lightning_reg.data.image_data import ImageData

__all__ = ["ImageData"]
