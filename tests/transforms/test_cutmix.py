import math
from random import Random

import pytest
import scipy.stats
import torch

from lightning_reg.functional.batch.boxes import fill_boxes
from lightning_reg.functional.batch.mixing import paste_from_previous
from lightning_reg.settings import SettingError
from lightning_reg.transforms import CutMix, Mixup, MixupOrCutMix

MIXES = [CutMix(), CutMix(per_sample=True), MixupOrCutMix(), MixupOrCutMix(per_sample=True), Mixup(per_sample=True)]


def numbered(count, *shape):
    """Images that hold their own number."""
    return torch.arange(float(count)).view(-1, *[1] * len(shape)).expand(count, *shape).contiguous()


def shares(mixed):
    """The part of each image that isn't its own number."""
    own = numbered(len(mixed), *mixed.shape[1:])
    return (mixed != own).double().flatten(1).mean(1)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (5, 9), (1, 7)])
def test_weight_is_the_pasted_area_and_at_most_half(per_sample, size):
    stream, mix, eye = Random(0), CutMix(per_sample=per_sample), torch.eye(6, dtype=torch.float64)
    for _ in range(100):
        mixed, targets = mix(numbered(6, 2, *size), eye, stream=stream)
        partners = targets[torch.arange(6), torch.arange(6) - 1]
        torch.testing.assert_close(shares(mixed), partners, rtol=0, atol=1e-7)  # the weight is a float32
        torch.testing.assert_close(targets.diagonal(), 1 - partners)
        assert (partners <= 0.5).all()
        strangers = (mixed != numbered(6, 2, *size)) & (mixed != numbered(6, 2, *size).roll(1, 0))
        assert not strangers.any()


def test_box_is_one_rectangle_the_same_in_all_channels():
    boxes = [(1, 3, 2, 5), (0, 0, 0, 0), (0, 4, 0, 4), (0, 6, 0, 6)]
    pasted = paste_from_previous(numbered(4, 3, 6, 6), boxes) != numbered(4, 3, 6, 6)
    expected = torch.zeros(4, 3, 6, 6, dtype=torch.bool)
    expected[0, :, 1:3, 2:5] = True
    expected[2, :, :4, :4] = True  # 16 of 36: less than half
    # All of the last one: turned round, so that it stays what it is.
    assert torch.equal(pasted, expected)


def test_box_covers_what_beta_draws_before_it_is_cut_off():
    """The middle of an image of many pixels, whose boxes near the middle aren't cut off: Kolmogorov-Smirnov at 1e-3.

    A box whose middle is drawn uniformly has the side √(1-λ); the paper's weight is its area after cutting off.
    """
    stream, size, count = Random(0), 64, 2000
    found = []
    mix = CutMix(alpha=1.0)
    for _ in range(count):
        draw = mix.draw(torch.empty(2, 1, size, size), stream=stream)
        found.append(draw.minor_weight.item())
    generator = torch.Generator().manual_seed(0)
    side = torch.rand(100_000, generator=generator).sqrt() * size  # √(1-λ) of a uniform λ
    spans = []
    for _ in range(2):
        middle = (torch.rand(100_000, generator=generator) * size).floor()
        half = side.floor() // 2
        spans.append((middle + side.floor() - half).clamp(max=size) - (middle - half).clamp(min=0))
    area = spans[0] * spans[1] / size**2
    expected = torch.minimum(area, 1 - area)
    assert scipy.stats.ks_2samp(found, expected.tolist()).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(1, 64), (64, 1)])
def test_of_a_signal_a_stretch_is_pasted_that_beta_draws(shape):
    """Kolmogorov-Smirnov at 1e-3, as above, with a stretch of the share 1-λ of the signal."""
    stream, length, mix = Random(0), 64, CutMix(alpha=1.0)
    found = [mix.draw(torch.empty(2, 1, *shape), stream=stream).minor_weight.item() for _ in range(2000)]
    generator = torch.Generator().manual_seed(0)
    stretch = (torch.rand(100_000, generator=generator) * length).floor()
    middle = (torch.rand(100_000, generator=generator) * length).floor()
    pasted = (middle + stretch - stretch // 2).clamp(max=length) - (middle - stretch // 2).clamp(min=0)
    area = pasted / length
    assert scipy.stats.ks_2samp(found, torch.minimum(area, 1 - area).tolist()).pvalue > 1e-3


@pytest.mark.parametrize("mix", MIXES, ids=repr)
def test_arguments_and_global_stream_are_left_alone_and_the_memory_format_kept(mix):
    inputs = torch.randn(5, 3, 6, 6).to(memory_format=torch.channels_last)
    targets = torch.eye(5)
    copies, state = (inputs.clone(), targets.clone()), torch.get_rng_state()
    mixed, _ = mix(inputs, targets, stream=Random(3))
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(inputs, copies[0])
    assert torch.equal(targets, copies[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mix", MIXES, ids=repr)
@pytest.mark.parametrize("count", [1, 3])
def test_odd_batches_and_batches_of_one_pass(mix, count):
    mixed, targets = mix(torch.randn(count, 1, 4, 4), torch.eye(count), stream=Random(0))
    assert mixed.shape == (count, 1, 4, 4)
    torch.testing.assert_close(targets.sum(1), torch.ones(count))


@pytest.mark.parametrize("mix", MIXES, ids=repr)
def test_equal_streams_give_equal_batches_and_others_do_not(mix):
    inputs, targets = torch.randn(6, 1, 8, 8), torch.eye(6)
    one, same, other = (mix(inputs, targets, stream=Random(seed)) for seed in (5, 5, 6))
    assert torch.equal(one[0], same[0])
    assert not torch.equal(one[0], other[0])


def test_gradients_pass_through():
    images = torch.randn(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    boxes = [(0, 2, 0, 3), (1, 4, 1, 2), (0, 0, 0, 0)]
    for drawn in (boxes, boxes[:1], [(0, 4, 0, 3)]):  # of each, of all, of all and most of each
        assert torch.autograd.gradcheck(paste_from_previous, (images, drawn))
        # By a mask with a gradient, by copies without one.
        assert torch.equal(paste_from_previous(images, drawn), paste_from_previous(images.detach(), drawn))
    assert torch.autograd.gradcheck(fill_boxes, (images, boxes, 0.5))


def test_switch_prob_is_the_share_of_cutmix():
    stream, mix, cut = Random(0), MixupOrCutMix(switch_prob=0.3), 0
    for _ in range(1000):
        mixed, _ = mix(numbered(2, 1, 4, 4), torch.eye(2), stream=stream)
        cut += bool(((mixed == 0) | (mixed == 1)).all())  # blending two images gives numbers in between
    assert abs(cut - 300) < 4 * math.sqrt(1000 * 0.3 * 0.7)


def test_prob_is_the_share_of_batches_that_are_mixed():
    stream = Random(0)
    for mix in (CutMix(prob=0.3), MixupOrCutMix(prob=0.3)):
        drawn = sum(mix.draw(torch.empty(2, 1, 4, 4), stream=stream) is not None for _ in range(1000))
        assert abs(drawn - 300) < 4 * math.sqrt(1000 * 0.3 * 0.7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CutMix(alpha=-0.5), r"alpha must be in \[0, ∞\)"),
        (lambda: CutMix(prob=-0.1), r"prob must be in \[0, 1\]"),
        (lambda: MixupOrCutMix(mixup_alpha=-1.0), "mixup_alpha must be in"),
        (lambda: MixupOrCutMix(switch_prob=2.0), "switch_prob must be in"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()


@pytest.mark.parametrize("mix", [CutMix(), MixupOrCutMix()], ids=repr)
def test_what_has_no_two_spatial_axes_is_refused(mix):
    with pytest.raises(SettingError, match=r"inputs must be images .* but have the shape \(4, 8, 8\)"):
        mix(torch.randn(4, 8, 8), torch.eye(4), stream=Random(0))


def test_whole_numbers_are_refused():
    with pytest.raises(SettingError, match="inputs must be of a floating dtype"):
        Mixup()(torch.zeros(4, 3, dtype=torch.uint8), torch.eye(4), stream=Random(0))


@pytest.mark.parametrize("mix", [CutMix(), CutMix(per_sample=True)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.long, torch.uint8, torch.bool, torch.float32])
def test_a_target_of_each_pixel_is_pasted_with_it(mix, dtype):
    images = torch.randint(0, 2, (4, 1, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    for targets in (images, images[:, 0]):
        mixed, pasted = mix(images, targets.to(dtype), stream=Random(1))
        assert not torch.equal(mixed, images)
        assert pasted.dtype == dtype
        assert torch.equal(pasted.float().view_as(mixed), mixed)


def test_indices_of_every_pixel_have_no_share_of_mixup():
    images = torch.rand(4, 1, 8, 8)
    with pytest.raises(SettingError, match=r"must be of a floating dtype to be mixed, but are torch\.int64"):
        MixupOrCutMix()(images, torch.zeros(4, 8, 8, dtype=torch.long))
    pasted = MixupOrCutMix(switch_prob=1.0)(images, images, stream=Random(1))
    assert torch.equal(*pasted)
