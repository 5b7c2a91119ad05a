import colorsys

import pytest
import torch
import torchvision.transforms.v2.functional as tv

from lightning_reg.functional.batch.color import (
    BRIGHTNESS,
    CONTRAST,
    SATURATION,
    blur,
    grayscale,
    jitter_colors_,
    shift_hue_,
)

EPS = torch.finfo(torch.float32).eps


def images(count=16, channels=3, size=(9, 7)):
    result = torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(0))
    result[:, :, 0] = result[:, :1, 0]  # gray pixels
    result[:, -1, 1] = result[:, 0, 1]  # two channels alike
    result[:, :, 2] = 0
    return result


def factors(count, low, high):
    return low + (high - low) * torch.rand(count, generator=torch.Generator().manual_seed(1))


def test_grayscale_is_torchvisions():
    torch.testing.assert_close(grayscale(images()), tv.rgb_to_grayscale(images()), rtol=0, atol=2 * EPS)


@pytest.mark.parametrize(
    ("kind", "oracle"),
    [(BRIGHTNESS, tv.adjust_brightness), (CONTRAST, tv.adjust_contrast), (SATURATION, tv.adjust_saturation)],
    ids=["brightness", "contrast", "saturation"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_change_is_torchvisions(kind, oracle, channels):
    before, factor = images(channels=channels), factors(16, 0, 2)
    result = jitter_colors_(before.clone(), torch.full((1, 16), kind), factor.unsqueeze(0))
    expected = torch.stack([oracle(image, value.item()) for image, value in zip(before, factor, strict=True)])
    # A mean of 63 pixels, rounded in another order, and two products.
    torch.testing.assert_close(result, expected, rtol=0, atol=16 * EPS)


def test_factor_one_is_the_identity():
    before = images()
    for kind in (BRIGHTNESS, CONTRAST, SATURATION):
        assert torch.equal(jitter_colors_(before.clone(), torch.full((1, 16), kind), torch.ones(1, 16)), before)


def test_hue_is_colorsys_pixel_by_pixel():
    before, shift = images(count=4).double(), factors(4, -0.5, 0.5).double()
    result = shift_hue_(before.clone(), shift)
    for image, changed, turn in zip(before, result, shift.tolist(), strict=True):
        pixels = [
            colorsys.hsv_to_rgb((h + turn) % 1, s, v)
            for h, s, v in (colorsys.rgb_to_hsv(*pixel) for pixel in image.flatten(1).T.tolist())
        ]
        torch.testing.assert_close(changed.flatten(1).T, torch.tensor(pixels, dtype=torch.float64), rtol=0, atol=1e-14)


def test_hue_is_torchvisions():
    before, shift = images(), factors(16, -0.5, 0.5)
    expected = torch.stack([tv.adjust_hue(image, turn.item()) for image, turn in zip(before, shift, strict=True)])
    # torchvision's hue on [0, 1] is right to half an ulp, and multiplied by 6; a few operations come before and after.
    torch.testing.assert_close(shift_hue_(before.clone(), shift), expected, rtol=0, atol=24 * EPS)


@pytest.mark.parametrize("hue_at", [0, 1])
def test_hue_is_turned_before_the_round_it_is_said(hue_at):
    before = images(count=2)
    kinds, factor = torch.full((1, 2), SATURATION), torch.full((1, 2), 0.3)
    result = jitter_colors_(before.clone(), kinds, factor, torch.full((2,), 0.2), hue_at)
    changes = [lambda image: tv.adjust_saturation(image, 0.3), lambda image: tv.adjust_hue(image, 0.2)]
    first, second = changes if hue_at else reversed(changes)
    torch.testing.assert_close(result, second(first(before)), rtol=0, atol=24 * EPS)


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_blur_is_torchvisions_with_a_width_for_each_image(kernel_size):
    before, sigmas = images(), factors(16, 0.1, 2.0)
    sigmas[3] = 0
    result = blur(before, sigmas, kernel_size)
    assert torch.equal(result[3], before[3])
    for index in (0, 1, 2, *range(4, 16)):
        expected = tv.gaussian_blur(before[index], [kernel_size] * 2, [sigmas[index].item()] * 2)
        # Sums of K² products of weights that sum to 1.
        torch.testing.assert_close(result[index], expected, rtol=0, atol=kernel_size**2 * EPS)


@pytest.mark.parametrize(("height", "width"), [(32, 33), (70, 45), (12, 130)])
def test_blur_of_images_of_any_size_is_torchvisions(height, width):
    before = torch.rand(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    result = blur(before, torch.tensor([0.7, 3.0]), 9)
    for index, sigma in enumerate((0.7, 3.0)):
        expected = tv.gaussian_blur(before[index], [9, 9], [sigma, sigma])
        torch.testing.assert_close(result[index], expected, rtol=0, atol=81 * EPS)
