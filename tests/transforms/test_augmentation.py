"""Batched augmentations have torchvision's distributions, draw from nobody's stream, and repeat."""

import math
import random
from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from lightning_reg.functional.batch.color import SATURATION
from lightning_reg.settings import SettingError
from lightning_reg.transforms import PRESETS, AdvancedAugmentation, BasicAugmentation, PerSampleAugmentation, preset
from lightning_reg.transforms.draws import box_sizes
from lightning_reg.transforms.jitter import ColorJitter

EPS = torch.finfo(torch.float32).eps
OFF = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "grayscale_prob": 0}


def images(count, shape=(3, 16, 16)):
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def one_image(size=16):
    """Smooth, colored, without any symmetry."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    return torch.stack((0.2 + 0.7 * x, 0.9 - 0.6 * y * x, 0.1 + 0.5 * y**2)).mul(255).round().to(torch.uint8)


def features(result):
    """Numbers that tell flips, places, sizes, brightness and colors apart."""
    red, green, blue = result.unbind(1)
    return {
        "red": red.mean((1, 2)),
        "green less blue": (green - blue).mean((1, 2)),
        "contrast": result.std((1, 2, 3)),
        "corner": result[:, :, :3, :3].mean((1, 2, 3)),
        "left less right": red[:, :, :6].mean((1, 2)) - red[:, :, -6:].mean((1, 2)),
        "top less bottom": blue[:, :6].mean((1, 2)) - blue[:, -6:].mean((1, 2)),
        "roughness": result.diff(dim=-1).abs().mean((1, 2, 3)),
    }


CHAINS = {
    "basic": [
        v2.RandomHorizontalFlip(0.5),
        v2.RandomVerticalFlip(0.5),
        v2.RandomRotation(15),
        v2.RandomCrop(16, padding=2),
        v2.ColorJitter(0.2, 0.2, 0.2, 0.1),
        v2.RandomGrayscale(0.1),
    ],
    "advanced": [
        v2.RandomResizedCrop(16, scale=(0.08, 1.0)),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(3, sigma=(0.1, 2.0))], p=0.5),
        v2.RandomErasing(0.25),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_distribution_is_that_of_torchvision_sample_by_sample(name):
    count = 2000
    image = one_image()
    augmentation, off = preset(name, input_shape=(3, 16, 16))
    assert not off
    stream = Random(0)
    ours = augmentation(image.expand(count, -1, -1, -1), stream=stream)
    ours = augmentation.after_normalization(ours, stream=stream)
    chain = v2.Compose(CHAINS[name])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.stack([chain(image.float() / 255) for _ in range(count)])
    others = features(theirs)
    for feature, values in features(ours).items():
        # Two samples of one distribution are further apart than this with a probability of 2 exp(-n D²) = 1e-4.
        distance = ks_2samp(values.numpy(), others[feature].numpy()).statistic
        assert distance < math.sqrt(math.log(2 / 1e-4) / count), feature


@pytest.mark.parametrize(("channels", "prob"), [(3, 1.0), (3, 0.6), (1, 1.0)])
def test_jitter_is_torchvisions_with_the_same_numbers_in_the_same_order(channels, prob):
    count = 64
    jitter = ColorJitter(brightness=0.2, contrast=0.3, saturation=0.4, hue=0.1, grayscale_prob=0.2, prob=prob)
    drawn = jitter.draw(count, channels, torch.Generator().manual_seed(0))
    before = torch.rand(count, channels, 6, 5, generator=torch.Generator().manual_seed(1))
    result = drawn.apply_(before.clone(), drawn.rows)
    kinds, factors, hue = drawn.rows[: drawn.rounds], drawn.rows[drawn.rounds : -1], drawn.rows[-1]
    changes = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    for index in range(count):
        expected = before[index]
        for number in range(drawn.rounds + 1):
            if number == drawn.hue_at:
                expected = tv.adjust_hue(expected, hue[index].item())
            if number < drawn.rounds:
                kind = int(kinds[number, index])
                expected = changes[kind](expected, factors[number, index].item())
        torch.testing.assert_close(result[index], expected, rtol=0, atol=64 * EPS)


def test_every_order_of_changes_and_every_range_is_drawn():
    count = 24_000
    jitter = ColorJitter(brightness=0.2, contrast=0.3, saturation=0.4, hue=0.1, grayscale_prob=0.25, prob=0.75)
    drawn = jitter.draw(count, 3, torch.Generator().manual_seed(0))
    assert (drawn.rounds, drawn.hue_at) == (7, 3)
    kinds, factors, hue = drawn.rows[:7].long(), drawn.rows[7:14], drawn.rows[14]
    jittered = hue != 0
    assert torch.equal(jittered, (factors[:6] != 1).any(0))
    before, after = factors[:3, jittered] != 1, factors[3:6, jittered] != 1
    assert torch.equal(before, ~after)  # each change happens once
    assert torch.equal(kinds[:3], kinds[3:6])
    kinds, slot = kinds[:3, jittered], before.sum(0, keepdim=True)
    factors = torch.where(before, factors[:3, jittered], factors[3:6, jittered])
    gray = drawn.rows[13] == 0
    # z of a binomial count below 4: 24 orders and a few more numbers, each wrong by chance once in 16,000.
    orders = Counter(tuple(row) for row in torch.cat((kinds, slot)).T.tolist())
    share = 0.75 / 24
    assert len(orders) == 24
    assert all(abs(n - count * share) < 4 * math.sqrt(count * share * (1 - share)) for n in orders.values())
    assert abs(gray.sum() - count / 4) < 4 * math.sqrt(count * 0.25 * 0.75)
    for kind, strength in ((0, 0.2), (1, 0.3), (2, 0.4)):
        values = factors[kinds == kind]
        assert ks_2samp(values.numpy(), np.linspace(1 - strength, 1 + strength, len(values))).pvalue > 1e-4
    assert ks_2samp(hue[jittered].numpy(), np.linspace(-0.1, 0.1, count)).pvalue > 1e-4


def test_what_is_left_of_jitter_without_the_three_changes_is_drawn():
    jitter = ColorJitter(brightness=0, contrast=0, saturation=0, hue=0.1, grayscale_prob=0.5)
    drawn = jitter.draw(10, 3, torch.Generator().manual_seed(0))
    assert (drawn.rounds, drawn.hue_at) == (1, 0)
    assert drawn.rows[0].tolist() == [SATURATION] * 10
    assert set(drawn.rows[1].tolist()) == {0, 1}
    assert (drawn.rows[2] != 0).all()


def test_crops_have_torchvisions_sizes():
    count, image, their = 2000, torch.zeros(3, 20, 24), v2.RandomResizedCrop(20, scale=(0.3, 1.0))
    make = getattr(their, "make_params", None) or their._get_params
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parameters = [make([image]) for _ in range(count)]
    expected = [(parameter["height"], parameter["width"]) for parameter in parameters]
    generator = torch.Generator().manual_seed(0)
    logs = (math.log(3 / 4), math.log(4 / 3))
    heights, widths, fits = box_sizes(count, (20, 24), (0.3, 1.0), logs, generator)
    assert fits.float().mean() > 0.99
    for ours, theirs in zip((heights, widths), zip(*expected, strict=True), strict=True):
        assert ks_2samp(ours.numpy(), theirs).statistic < math.sqrt(math.log(2 / 1e-4) / count)


def test_crop_that_never_fits_is_the_largest_one_in_the_middle():
    before = torch.arange(8.0).repeat(1, 1, 2, 1) / 8  # 2×8: no box of all the area is 3/4 to 4/3 as wide as high
    augmentation = AdvancedAugmentation(
        smallest_crop=1.0, horizontal_flip_prob=0, jitter_prob=0, blur_prob=0, grayscale_prob=0
    )
    result = augmentation(before, stream=Random(0))
    expected = tv.resized_crop(before[0], 0, 2, 2, 3, [2, 8])
    torch.testing.assert_close(result[0], expected, rtol=0, atol=32 * EPS)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_preset_leaves_streams_and_images_alone_and_repeats(name, channels):
    augmentation, _ = preset(name, input_shape=(channels, 16, 16))
    given = images(8, (channels, 16, 16))
    before, states = given.clone(), (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    first, second, other = (augmentation(given, stream=Random(seed)) for seed in (0, 0, 1))
    assert first.dtype == torch.float32
    assert first.shape == given.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(given, before)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


@pytest.mark.parametrize("augment", [BasicAugmentation(), AdvancedAugmentation()])
def test_photographs_that_are_changed_a_few_at_a_time_are_those_of_the_whole_batch(augment, monkeypatch):
    batch = images(9)
    whole = augment(batch, stream=Random(3))
    monkeypatch.setattr("lightning_reg.transforms.augmentation._PORTION", 2 * batch[0].numel())
    torch.testing.assert_close(augment(batch, stream=Random(3)), whole, rtol=0, atol=32 * EPS)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "none"])
def test_every_sample_draws_for_itself(name):
    augmentation, _ = preset(name, input_shape=(3, 16, 16))
    result = augmentation(one_image().expand(12, -1, -1, -1), stream=Random(0))
    assert len(result.flatten(1).unique(dim=0)) > 6  # some presets leave some images as they are


def test_floats_are_taken_as_they_are_and_left_alone():
    before = images(4).float() / 255
    kept = before.clone()
    for augmentation in (BasicAugmentation(), AdvancedAugmentation()):
        from_floats = augmentation(before, stream=Random(0))
        torch.testing.assert_close(from_floats, augmentation(images(4), stream=Random(0)), rtol=0, atol=8 * EPS)
        assert torch.equal(before, kept)


def test_basic_with_everything_off_is_the_identity():
    augmentation = BasicAugmentation(horizontal_flip_prob=0, vertical_flip_prob=0, degrees=0, padding=0, **OFF)
    assert torch.equal(augmentation(images(4), stream=Random(0)), images(4).float().mul(1 / 255))


@pytest.mark.parametrize(
    "augmentation", [BasicAugmentation(), AdvancedAugmentation(), PerSampleAugmentation(transforms=[v2.RandomInvert()])]
)
def test_empty_batch_passes(augmentation):
    augmented = augmentation(images(0), stream=Random(0))
    assert (augmented.shape, augmented.dtype) == ((0, 3, 16, 16), torch.float32)


def test_erasing_is_after_normalization_and_in_a_quarter_of_the_images():
    count = 4000
    normalized = torch.full((count, 1, 8, 8), 2.0)
    erased = AdvancedAugmentation().after_normalization(normalized, stream=Random(0)).eq(0).flatten(1).any(1)
    assert abs(erased.sum() - count / 4) < 4 * math.sqrt(count * 0.25 * 0.75)


def test_flips_that_change_the_thing_are_off():
    given = torch.zeros(400, 1, 16, 16, dtype=torch.uint8)
    given[:, :, :, :8] = 255
    augmentation, off = preset("basic", input_shape=(1, 16, 16), flips=())
    assert off == ["horizontal flips", "vertical flips", "saturation, hue and grayscale (one channel)"]
    result = augmentation(given, stream=Random(0))
    assert (result[..., 4:8].mean((1, 2, 3)) > result[..., 9:13].mean((1, 2, 3))).all()


@pytest.mark.parametrize("name", ["basic", "advanced"])
@pytest.mark.parametrize("channels", [2, 4, 6])
def test_images_of_other_than_three_channels_have_brightness_and_contrast(name, channels):
    given = images(4, (channels, 16, 16))
    augmentation, off = preset(name, input_shape=(channels, 16, 16))
    assert off == [f"saturation, hue and grayscale ({channels} channels)"]
    assert augmentation(given, stream=Random(0)).shape == given.shape
    # One rule for all channels: alike ones stay alike, and are what a single one becomes.
    alike = given[:, :1].expand(-1, channels, -1, -1)
    result = augmentation(alike, stream=Random(1))
    torch.testing.assert_close(result[:, :1].expand_as(result), result)
    torch.testing.assert_close(result[:, :1], augmentation(given[:, :1], stream=Random(1)))


@pytest.mark.parametrize(("size", "padding"), [(8, 1), (28, 4), (32, 4), (224, 4)])
def test_small_images_get_a_narrower_border(size, padding):
    assert preset("basic", input_shape=(3, size, size))[0].padding == padding


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BasicAugmentation(horizontal_flip_prob=1.5), r"horizontal_flip_prob must be in \[0, 1\], but is 1.5"),
        (lambda: BasicAugmentation(degrees=-1), r"degrees must be in \[0, 180\]"),
        (lambda: BasicAugmentation(padding=1.5), "padding must be a whole number of at least 0"),
        (lambda: BasicAugmentation(hue=0.6), r"hue must be in \[0, 0.5\]"),
        (lambda: BasicAugmentation(contrast=-0.1), r"contrast must be in \[0, ∞\)"),
        (lambda: AdvancedAugmentation(smallest_crop=0), r"smallest_crop must be in \(0, 1\]"),
        (lambda: AdvancedAugmentation(jitter_prob=2), r"jitter_prob must be in \[0, 1\]"),
        (lambda: preset("bsic", input_shape=(3, 8, 8)), "augment must be one of none, basic.*did you mean 'basic'"),
        (lambda: PerSampleAugmentation(transforms=5), "augment must be a list of callables, but is 5"),
        (lambda: PerSampleAugmentation(transforms=[]), "augment must have at least one transform"),
        (lambda: PerSampleAugmentation(transforms=[v2.Identity(), 3]), "entry 1 is 3"),
        (lambda: PerSampleAugmentation(transforms=[v2.Normalize([0.5], [0.5])]), "augment must not normalize, but"),
    ],
)
def test_bad_settings_are_refused_at_once(make, message):
    with pytest.raises(SettingError, match=message):
        make()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (v2.CenterCrop(4), r"images \(C, H, W\) of \(3, 16, 16\), but returned a tensor \(3, 4, 4\)"),
        (v2.ToPILImage(), "but returned a Image"),
    ],
)
def test_transform_that_returns_something_else_is_refused(transform, message):
    with pytest.raises(SettingError, match=message):
        PerSampleAugmentation(transforms=[transform])(images(2), stream=Random(0))


def test_images_too_small_to_be_blurred_are_refused():
    with pytest.raises(SettingError, match="augment must have images of at least 2×2, but they are 1×5"):
        AdvancedAugmentation()(torch.rand(2, 3, 1, 5), stream=Random(0))
