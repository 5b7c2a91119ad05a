import math

import pytest
import torch
import torchvision.transforms.v2.functional as tv

from lightning_reg.functional.batch.geometry import flip_rotate_shift, resized_crop

N = 24


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 9, 14), (3, 7, 5)], ids=str)
def test_flip_rotation_and_shifted_crop_are_torchvisions_one_after_the_other(shape):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (N, *shape), dtype=torch.uint8, generator=generator)
    flips = torch.randint(0, 2, (N, 2), generator=generator)
    angles = 360 * torch.rand(N, generator=generator) - 180
    angles[:4] = 0
    shifts = torch.randint(-4, 5, (N, 2), generator=generator)
    result = flip_rotate_shift(images, flips, angles.deg2rad(), shifts)
    for index, image in enumerate(images):
        expected = tv.horizontal_flip(image) if flips[index, 0] else image
        expected = tv.vertical_flip(expected) if flips[index, 1] else expected
        expected = tv.pad(tv.rotate(expected, angles[index].item()), [4, 4])
        top, left = (shifts[index] + 4).tolist()
        expected = tv.crop(expected, top, left, *shape[1:])
        # A pixel that comes from within rounding of the border of two others may take either.
        assert (result[index] != expected).float().mean() <= 1 / 100


def test_nothing_asked_for_is_the_identity():
    images = torch.rand(3, 2, 5, 6)
    zeros = torch.zeros(3, 2)
    assert torch.equal(flip_rotate_shift(images, zeros, torch.zeros(3), zeros), images)


def test_every_pixel_of_a_large_image_keeps_its_place():
    image = torch.arange(8, dtype=torch.uint8).repeat(4200 * 525).view(1, 1, 4200, 4200)
    zeros = torch.zeros(1, 2)
    assert torch.equal(flip_rotate_shift(image, zeros, torch.zeros(1), zeros), image)


def test_what_comes_from_outside_is_black():
    result = flip_rotate_shift(torch.ones(1, 1, 8, 8), torch.zeros(1, 2), torch.zeros(1), torch.tensor([[2, -3]]))
    assert result[0, 0, :6, 3:].eq(1).all()
    assert result.sum() == 6 * 5


@pytest.mark.parametrize("size", [(12, 9), (8, 8), (1, 6)], ids=str)
def test_resized_crop_is_torchvisions(size):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(N, 3, *size, generator=generator)
    sizes = torch.stack([torch.randint(1, side + 1, (N,), generator=generator) for side in size], 1)
    starts = (torch.rand(N, 2, generator=generator) * (torch.tensor(size) - sizes + 1)).long()
    mirrored = torch.randint(0, 2, (N,), generator=generator)
    result = resized_crop(images, torch.cat((starts, sizes), 1), mirrored)
    for index, image in enumerate(images):
        expected = tv.resized_crop(image, *starts[index].tolist(), *sizes[index].tolist(), list(size))
        expected = tv.horizontal_flip(expected) if mirrored[index] else expected
        # Coordinates up to 12, in float32: weights of pixels on [0, 1] are right to 12 · 2⁻²³ on either axis.
        torch.testing.assert_close(result[index], expected, rtol=0, atol=4 * 12 * 2**-23)


def test_angles_are_radians_counter_clockwise():
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 0, 1] = 1  # in the middle of the top row
    turned = flip_rotate_shift(image, torch.zeros(1, 2), torch.tensor([math.pi / 2]), torch.zeros(1, 2))
    assert turned[0, 0, 1, 0] == 1  # in the middle of the left column
