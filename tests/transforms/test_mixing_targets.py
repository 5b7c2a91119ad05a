"""What a mixing transform is given for targets when it is called by hand."""

from random import Random

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms as T
from torch.utils.data import TensorDataset

from lightning_reg.data import DatasetData, ImageData, Mnist1DData, TabularData
from lightning_reg.settings import SettingError
from lightning_reg.transforms import BasicAugmentation, CutMix, Cutout, Mixup, PerSampleAugmentation, RandomErasing

IMAGES = torch.rand(4, 3, 8, 8)
LABELS = torch.tensor([0, 2, 1, 2])


@pytest.mark.parametrize("mix", [Mixup(), CutMix()], ids=repr)
def test_class_indices_become_probabilities_where_the_number_of_classes_is_known(mix):
    mixed = mix(IMAGES, LABELS, stream=Random(1), num_classes=3)
    by_hand = mix(IMAGES, F.one_hot(LABELS, 3).float(), stream=Random(1))
    assert all(torch.equal(a, b) for a, b in zip(mixed, by_hand, strict=True))


def test_without_a_stream_torchs_seed_decides():
    torch.manual_seed(4)
    first = Mixup()(IMAGES, torch.eye(4))
    second = Mixup()(IMAGES, torch.eye(4))
    torch.manual_seed(4)
    again = Mixup()(IMAGES, torch.eye(4))
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], second[1])


def test_what_leaves_targets_alone_takes_class_indices():
    assert Cutout()(IMAGES, LABELS)[1] is LABELS


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Mixup()(IMAGES, LABELS),
            "targets must be of a floating dtype to be mixed, but are torch.int64; of class indices num_classes makes",
        ),
        (lambda: CutMix()(IMAGES, torch.eye(4).bool()), "must be of a floating dtype to be mixed, but are torch.bool"),
        (lambda: Mixup()(IMAGES, torch.eye(3)), r"as many as inputs, 4, but have the shape \(3, 3\)"),
        (lambda: Mixup()(IMAGES, torch.tensor(1.0)), r"as many as inputs, 4, but have the shape \(\)"),
        (lambda: Mixup()(IMAGES, [0, 1, 2, 3]), "inputs and targets must be tensors to be mixed, but are Tensor and l"),
        (lambda: Mixup()(IMAGES, LABELS, num_classes=2), "2"),
        (lambda: Mixup()(IMAGES, LABELS, num_classes="2"), "num_classes must be a whole number"),
        (lambda: CutMix(per_sample="false"), "per_sample must be true or false, but is the text 'false'"),
        (
            lambda: PerSampleAugmentation(transforms=[T.RandomCrop]),
            "augment must be a list of callables, but entry 0 is <class",
        ),
        (lambda: RandomErasing(scale=123), "scale must be two numbers, the least and the greatest, but is 123"),
        (lambda: RandomErasing(scale=(0.1, 0.2, 0.3)), "scale must be two numbers"),
        (lambda: RandomErasing(ratio="ab"), "ratio must be two numbers, the least and the greatest, but is 'ab'"),
        (lambda: RandomErasing(scale=(0.1, 2.0)), r"scale must be in \[0, 1\], but is 2.0"),
        (lambda: RandomErasing(ratio=(0.0, 1.0)), r"ratio must be in \(0, ∞\), but is 0.0"),
        (
            lambda: PerSampleAugmentation(transforms=[T.RandomCrop(4), T.ToTensor()]),
            "augment must not hold ToTensor, entry 1: images come as tensors",
        ),
        (
            lambda: PerSampleAugmentation(transforms=[T.RandomCrop(4), CutMix()]),
            "augment must list callables that take one image, but entry 1, .*, takes a batch: give it as mix",
        ),
        (
            lambda: ImageData(dataset="digits", augment=[BasicAugmentation()]),
            "but entry 0, .*, takes a batch: give it as augment itself, without a list",
        ),
        (
            lambda: ImageData(dataset="digits", mix="mixup"),
            r"mix must be a transform such as Mixup\(\), but is 'mixup'",
        ),
        (lambda: TabularData(dataset="diabetes", mix=Mixup), "mix must be a transform such as"),
        (lambda: Mnist1DData(mix="mixup"), "mix must be a transform such as"),
        (
            lambda: DatasetData(
                train=TensorDataset(IMAGES, LABELS), val=TensorDataset(IMAGES, LABELS), mix=lambda *_: None
            ),
            "mix must be a transform such as",
        ),
    ],
)
def test_what_cant_be_used_is_refused_in_one_sentence(call, message):
    with pytest.raises(SettingError, match=message):
        call()
