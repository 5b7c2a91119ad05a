"""Splits of images into training, validation and test sets."""

import torch
from torch import Tensor

from lightning_reg.data.images.sources import LabeledImages
from lightning_reg.data.loader import SampleDataset
from lightning_reg.data.row_splits import RowSplitter
from lightning_reg.data.targets import Targets
from lightning_reg.settings import SettingError

__all__ = ["image_splits"]


def image_splits(
    train: LabeledImages,
    val: LabeledImages | None,
    test: LabeledImages | None,
    *,
    targets: Targets,
    splitter: RowSplitter,
    groups: Tensor | None = None,
) -> dict[str, SampleDataset]:
    """Returns the datasets ``train``, ``val`` and, where there are images for it, ``test``. Nothing is copied.

    Args:
        train: Training images, from which validation images are held out where ``val`` is None.
        targets: Targets of the training images.
        splitter: Split into validation and training images; has no test part.
        groups: (N,), group indices; images of one group are never in both parts.

    Raises:
        SettingError: If there are too few images, or a class would have none.
    """
    if val is None:
        rows = splitter.split(targets, groups=groups)
    elif splitter.folds is not None:
        raise SettingError(f"folds must be left out where images to validate on are given, but is {splitter.folds}")
    else:
        rows = {"train": splitter.chosen(targets, torch.arange(len(train.labels)))}
    splits = {part: SampleDataset(train.images, train.labels, indices=chosen) for part, chosen in rows.items()}
    for part, given in (("val", val), ("test", test)):
        if given is not None:
            splits[part] = SampleDataset(given.images, given.labels)
    return splits
