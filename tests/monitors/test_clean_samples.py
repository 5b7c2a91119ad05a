"""Training samples are measured without their augmentation, wherever in the data set it is kept."""

import os

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from lightning_reg.callbacks import GeneralizationGap
from lightning_reg.monitors.clean_samples import without_augmentation
from tests.monitors.gap import Reduces, by_hand, fit, samples


def far(inputs):
    return inputs + 100


def same(inputs):
    return inputs


class Rows(Dataset):
    """Rows of the samples, with whatever is done to them under a name of its own."""

    def __init__(self, rows, name="transform", transform=None, target_transform=None):
        self.rows, self.name, self.target_transform = list(rows), name, target_transform
        setattr(self, name, transform)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        inputs, label = samples()[self.rows[index]]
        transform = getattr(self, self.name)
        for function in transform if isinstance(transform, list) else [transform]:
            inputs = inputs if function is None else function(inputs)
        return inputs, label if self.target_transform is None else self.target_transform(label)


class Wrapper(Dataset):
    """Somebody's, who calls it something else."""

    def __init__(self, base, function):
        self.base, self.function = base, function

    def __len__(self):
        return len(self.base)

    def __getitem__(self, index):
        inputs, label = self.base[index]
        return self.function(inputs), label


class TransformedSubset(Subset):
    def __init__(self, dataset, indices, transform):
        super().__init__(dataset, indices)
        self.transform = transform

    def __getitem__(self, index):
        inputs, label = super().__getitem__(index)
        return self.transform(inputs), label

    def __getitems__(self, indices):
        return [self[index] for index in indices]


TRAIN, VALIDATION = range(40), range(40, 70)
PAIRS = {
    "itself": lambda: (Rows(TRAIN, transform=far), Rows(VALIDATION)),
    "list": lambda: (Rows(TRAIN, "augmentations", [far, far]), Rows(VALIDATION, "augmentations", [])),
    "another name": lambda: (Rows(TRAIN, "image_transform", far), Rows(VALIDATION, "image_transform", same)),
    "subset": lambda: (Subset(Rows(range(70), transform=far), TRAIN), Subset(Rows(range(70)), VALIDATION)),
    "parts": lambda: (
        ConcatDataset([Rows(range(20), transform=far), Subset(Rows(range(70), transform=far), range(20, 40))]),
        Rows(VALIDATION),
    ),
    "parts of both": lambda: (
        ConcatDataset([Rows(range(20), transform=far), Wrapper(Rows(range(20, 40)), far)]),
        ConcatDataset([Wrapper(Rows(range(40, 50)), same), Rows(range(50, 70))]),
    ),
    "wrapper": lambda: (Wrapper(TensorDataset(*samples()[:40]), far), Wrapper(TensorDataset(*samples()[40:]), same)),
    "within a wrapper": lambda: (
        Wrapper(Subset(Wrapper(Rows(range(70)), far), TRAIN), same),
        Wrapper(Subset(Wrapper(Rows(range(70)), same), VALIDATION), same),
    ),
    "transformed subset": lambda: (
        TransformedSubset(Rows(range(70)), TRAIN, far),
        TransformedSubset(Rows(range(70)), VALIDATION, same),
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_training_samples_are_clean_and_the_users_data_are_as_they_were(pair):
    train, val = PAIRS[pair]()
    gap = GeneralizationGap(max_samples=None, verbose=False)
    data = {"train_dataloaders": DataLoader(train, 16), "val_dataloaders": DataLoader(val, 16)}
    module, trainer = fit(gap, module=Reduces(), data=data, max_epochs=1)
    for split, rows in (("train", TRAIN), ("val", VALIDATION)):
        expected = by_hand(module, TensorDataset(*samples()[list(rows)]))[0]
        assert trainer.callback_metrics[f"gap/{split}_loss"] == pytest.approx(expected, rel=1e-5)
    assert train[0][0].min() > 50


def test_transforms_of_labels_stay():
    train = Rows(TRAIN, transform=far, target_transform=lambda label: label + 1)
    clean = without_augmentation(train, Rows(VALIDATION))
    assert torch.equal(clean[3][0], samples()[3][0])
    assert clean[3][1] == samples()[3][1] + 1


class Doubled(Rows):
    def __init__(self, rows, augment):
        super().__init__(rows)
        self.augment = augment

    def __len__(self):
        return len(self.rows) * (2 if self.augment else 1)


class Stored(Rows):
    def __init__(self, rows):
        super().__init__(rows)
        self.transformed = [samples()[row] for row in rows]


class ReadsByMethod(Wrapper):
    def __init__(self, base, function):
        super().__init__(base, function)
        self.read = base.__getitem__


def test_what_is_data_stays():
    doubled, stored = Doubled(TRAIN, augment=True), Stored(TRAIN)
    assert without_augmentation(doubled, Doubled(VALIDATION, augment=False)) is doubled
    assert without_augmentation(stored, Stored(VALIDATION)) is stored
    listed = list(samples())
    assert without_augmentation(listed, list(samples())) is listed
    reads = ReadsByMethod(Rows(TRAIN), far)
    clean = without_augmentation(reads, ReadsByMethod(Rows(VALIDATION), same))
    assert (clean.read, clean.function) == (reads.read, same)


class Chosen(Wrapper):
    """Its ``pick`` decides which samples there are, its folder where they lie."""

    def __init__(self, base, function, pick, transformed_root):
        super().__init__(base, function)
        self.pick, self.transformed_root = pick, transformed_root

    def __getitem__(self, index):
        return super().__getitem__(self.pick(index))


def test_what_chooses_samples_stays():
    train = Chosen(Rows(TRAIN), far, lambda index: index, "train")
    clean = without_augmentation(train, Chosen(Rows(TRAIN), same, lambda index: index + 2, "val"))
    assert (clean.pick, clean.transformed_root, clean.function) == (train.pick, "train", same)


class HandsOn(Wrapper):
    def __getattr__(self, name):
        return getattr(self.base, name)


def test_a_wrapper_may_hand_on_its_attributes():
    clean = without_augmentation(HandsOn(Rows(TRAIN, transform=far), same), Rows(VALIDATION))
    assert torch.equal(clean[3][0], samples()[3][0])


def test_a_data_set_that_holds_itself_is_no_trouble():
    train, val = Rows(TRAIN, transform=far), Rows(VALIDATION)
    train.whole, val.whole = train, val
    assert without_augmentation(train, val).transform is None
    assert train.transform is far


class AugmentsByItself(Rows):
    """Adds noise in its own code, where it is for training."""

    def __init__(self, rows, *, train):
        super().__init__(rows)
        self.train = train

    def __getitem__(self, index):
        inputs, label = super().__getitem__(index)
        return {"x": inputs + torch.randn(4) if self.train else inputs, "y": [label, "a", None, float("nan")]}


class TakesKeys(Reduces):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"][0]), batch_idx)

    def validation_step(self, batch, batch_idx):
        return super().validation_step((batch["x"], batch["y"][0]), batch_idx)


class OpensItsFileOnce(AugmentsByItself):
    """As of HDF5, which a worker must open for itself."""

    opened = ()

    def __getitem__(self, index):
        self.opened = (*self.opened, os.getpid())
        return super().__getitem__(index)


def of_both(train, val, kind=AugmentsByItself, **settings):
    def texts(items):
        return {"x": torch.stack([item["x"] for item in items]), "y": [torch.stack([item["y"][0] for item in items])]}

    whole = kind(range(45), train=train), kind(range(45, 70), train=val)
    train, val = (DataLoader(part, 16, collate_fn=texts, **settings) for part in whole)
    return {"train_dataloaders": train, "val_dataloaders": val}


def test_augmentation_that_cannot_be_taken_away_is_warned_of_once():
    with pytest.warns(UserWarning, match="training samples that differ at each reading, as validation's don't") as told:
        fit(GeneralizationGap(verbose=False), module=TakesKeys(), data=of_both(train=True, val=False))
    assert sum("at each reading" in str(warning.message) for warning in told) == 1


@pytest.mark.parametrize("alike", [False, True])
def test_samples_of_both_parts_that_are_drawn_alike_are_not_warned_of(alike):
    """A warning would be an error here."""
    gap = GeneralizationGap(verbose=False)
    _, trainer = fit(gap, module=TakesKeys(), data=of_both(train=alike, val=alike))
    assert any(name.startswith("gap/") for name in trainer.callback_metrics)


def test_what_workers_read_is_not_read_beside_them():
    data = of_both(train=True, val=False, kind=OpensItsFileOnce, num_workers=1)
    fit(GeneralizationGap(verbose=False), module=TakesKeys(), data=data)
    assert all(loader.dataset.opened == () for loader in data.values())
