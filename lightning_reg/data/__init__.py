"""Data modules for images and tables, their splits, and a loader that fetches a batch at once."""

from lightning_reg.data.dataset_data import DatasetData
from lightning_reg.data.images.image_data import ImageData
from lightning_reg.data.in_memory import InMemoryData
from lightning_reg.data.mnist1d import Mnist1DData
from lightning_reg.data.tables.tabular_data import TabularData

__all__ = ["DatasetData", "ImageData", "InMemoryData", "Mnist1DData", "TabularData"]
