import math
from random import Random

import pytest
import scipy.stats
import torch
from torchvision.transforms import v2

from lightning_reg.settings import SettingError
from lightning_reg.transforms import Cutout, RandomErasing


def erased(mix, count=2000, size=(16, 16), seed=0):
    """Which pixels of so many images are filled, (N, H, W)."""
    inputs, targets = torch.ones(count, 2, *size), torch.arange(count)
    mixed, same = mix(inputs, targets, stream=Random(seed))
    assert same is targets
    assert torch.equal(mixed[:, 0], mixed[:, 1])
    return mixed[:, 0] == 0


def box(mask):
    """Top, bottom, left, right of what is filled, which is one rectangle."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    assert mask.sum() == len(rows) * len(columns)
    return rows[0].item(), rows[-1].item() + 1, columns[0].item(), columns[-1].item() + 1


@pytest.mark.parametrize("size", [6, 0.375])
def test_cutout_fills_a_square_around_any_pixel_cut_off_at_the_border(size):
    masks = erased(Cutout(size=size))
    middles = torch.zeros(16, 16)
    for mask in masks:
        top, bottom, left, right = box(mask)
        assert 3 <= bottom - top <= 6
        assert 3 <= right - left <= 6
        row = top + 3 if bottom - top == 6 or bottom == 16 else bottom - 3
        column = left + 3 if right - left == 6 or right == 16 else right - 3
        middles[row, column] += 1
    # Every pixel is the middle equally often: chi-squared at level 1e-3.
    assert scipy.stats.chisquare(middles.flatten().numpy()).pvalue > 1e-3


def test_prob_is_that_of_each_image():
    for mix in (Cutout(prob=0.3), RandomErasing(prob=0.3)):
        filled = erased(mix).flatten(1).any(1).sum().item()
        assert abs(filled - 600) < 4 * math.sqrt(2000 * 0.3 * 0.7)


def test_random_erasing_is_distributed_as_torchvisions():
    """Area, ratio and place, by Kolmogorov-Smirnov at level 1e-4 each."""
    ours = [box(mask) for mask in erased(RandomErasing(prob=1.0), size=(32, 24)) if mask.any()]
    theirs = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peer = v2.RandomErasing(p=1.0)
        for _ in range(2000):
            mask = peer(torch.ones(1, 32, 24))[0] == 0
            if mask.any():
                theirs.append(box(mask))
    for number in range(4):
        samples = [
            [((b - t) * (r - le), (b - t) / (r - le), t, r)[number] for t, b, le, r in boxes]
            for boxes in (ours, theirs)
        ]
        assert scipy.stats.ks_2samp(*samples).pvalue > 1e-4


@pytest.mark.parametrize("mix", [Cutout(size=3, value=-2.0), RandomErasing(prob=1.0, value=-2.0)], ids=repr)
def test_value_is_filled_in_and_all_else_stays(mix):
    inputs = torch.randn(4, 3, 9, 9).to(memory_format=torch.channels_last)
    before = inputs.clone()
    mixed, _ = mix(inputs, torch.arange(4), stream=Random(0))
    assert torch.equal(inputs, before)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    changed = mixed != before
    assert changed.any()
    assert (mixed[changed] == -2.0).all()


def test_a_batch_of_one_is_erased_too():
    assert erased(Cutout(size=4), count=1).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cutout(size=-1), "size must be a whole number of at least 0"),
        (lambda: Cutout(size=1.5), r"size must be in \[0, 1\]"),
        (lambda: RandomErasing(scale=(0.5, 0.1)), "scale must begin with the smaller number, but is 0.5, 0.1"),
        (lambda: RandomErasing(ratio=(0.0, 1.0)), r"ratio must be in \(0, ∞\)"),
        (lambda: RandomErasing(prob=1.2), r"prob must be in \[0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()
