"""Which pictures are trained on, validated on and tested on."""

from collections.abc import Sequence

import torch

from lightning_reg.data.loader import SampleDataset
from lightning_reg.data.sources import Pictures
from lightning_reg.data.splits import chosen_count, stratified_split

__all__ = ["picture_splits"]


def picture_splits(
    train: Pictures,
    val: Pictures | None,
    test: Pictures | None,
    *,
    val_size: int | float,
    train_size: int | float | None,
    seed: int,
    classes: Sequence[str],
) -> dict[str, SampleDataset]:
    """Returns data sets under train, val and, where there are pictures for it, test. Nothing is copied.

    Args:
        train: To train on, and to hold out for validation where there are no others.
        val: To validate on.
        test: To test on.
        val_size: How many are held out, stratified by class: a number or a fraction.
        train_size: How many of the rest are used, likewise; all where None.
        seed: Of both choices.
        classes: Their names, for messages.

    Raises:
        SettingError: If there aren't that many, or a class would have none.
    """
    splits: dict[str, SampleDataset] = {}
    chosen = torch.arange(len(train.labels))
    if val is None:
        held_out, chosen = stratified_split(train.labels, val_size, seed=seed, name="val_size", classes=classes)
        splits["val"] = SampleDataset(train.images, train.labels, indices=held_out)
    else:
        splits["val"] = SampleDataset(val.images, val.labels)
    if train_size is not None and chosen_count(train_size, len(chosen), name="train_size") < len(chosen):
        subset, _ = stratified_split(
            train.labels[chosen], train_size, seed=seed, name="train_size", classes=classes, keeps_rest=False
        )
        chosen = chosen[subset]
    splits["train"] = SampleDataset(train.images, train.labels, indices=chosen)
    if test is not None:
        splits["test"] = SampleDataset(test.images, test.labels)
    return splits
