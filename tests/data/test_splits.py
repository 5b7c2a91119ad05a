import pytest
import torch

from lightning_reg.data.splits import chosen_count, stratified_split
from lightning_reg.settings import SettingError

LABELS = torch.arange(3).repeat_interleave(torch.tensor([50, 30, 20]))
CLASSES = ["a", "b", "c"]


def split(size, seed=0, labels=LABELS):
    return stratified_split(labels, size, seed=seed, name="val_size", classes=CLASSES)


@pytest.mark.parametrize("size", [20, 0.2])
def test_every_class_has_its_share_and_every_sample_one_place(size):
    chosen, rest = split(size)
    assert torch.bincount(LABELS[chosen]).tolist() == [10, 6, 4]
    assert torch.cat([chosen, rest]).sort().values.tolist() == list(range(100))


def test_seed_alone_decides():
    torch.manual_seed(1)
    first = split(0.2)[0]
    torch.manual_seed(2)
    assert torch.equal(split(0.2)[0], first)
    assert not torch.equal(split(0.2, seed=1)[0], first)


@pytest.mark.parametrize(
    ("size", "labels", "message"),
    [
        (2, LABELS, r"val_size must leave .* in both parts, but is 2: 2 of 100 samples, and 0 of the 20 of class 'c'"),
        (99, LABELS, "val_size must leave at least one"),
        (0.0, LABELS, r"val_size must be in \(0, 1\], but is 0.0"),
        (1.0, LABELS, "val_size must leave at least one"),
        (-3, LABELS, r"val_size must be in \[1, 100\]"),
        ("abc", LABELS, "val_size must be a number of samples or a fraction, but is 'abc'"),
        (None, LABELS, "val_size must be a number of samples or a fraction, but is None"),
        (True, LABELS, "val_size must be a number of samples or a fraction, but is True"),
        (2.0, LABELS, "but is 2.0: 2 of 100 samples, .*; a fraction must be above 0 and below 1"),
        (101, LABELS, r"val_size must be in \[1, 100\], the number of samples there are, but is 101"),
        (3, torch.tensor([0] * 95 + [1] * 3 + [2] * 2), "0 of the 3 of class 'b'"),
        (0.5, torch.tensor([0] * 5 + [1] * 5 + [2]), "of the 1 of class 'c'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(size, labels, message):
    with pytest.raises(SettingError, match=message):
        split(size, labels=labels)


@pytest.mark.parametrize("size", [98, 0.995, 1.0])
def test_nearly_all_can_be_chosen_where_nobody_needs_the_rest(size):
    chosen, _ = stratified_split(LABELS, size, seed=0, name="train_size", classes=CLASSES, keeps_rest=False)
    assert len(chosen) == chosen_count(size, 100, name="train_size")


@pytest.mark.parametrize("size", range(3, 98))
def test_every_class_is_within_one_sample_of_its_exact_share(size):
    shares = torch.bincount(LABELS[split(size)[0]], minlength=3)
    assert shares.sum() == size
    assert ((shares - torch.bincount(LABELS) * size / 100).abs() < 1).all()


def test_fraction_means_a_number_of_samples():
    assert chosen_count(0.25, 10, name="train_size") == 2
    assert chosen_count(0.001, 10, name="train_size") == 1
    assert chosen_count(10, 10, name="train_size") == 10


def test_whole_number_is_a_number_of_samples_even_as_a_float():
    assert chosen_count(5.0, 10, name="train_size") == 5
    assert chosen_count(1.0, 10, name="train_size") == 10
    with pytest.raises(SettingError, match=r"train_size must be in \(0, 1\], but is 1.5"):
        chosen_count(1.5, 10, name="train_size")
