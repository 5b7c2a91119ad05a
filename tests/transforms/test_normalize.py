import torch

from lightning_reg.transforms import normalize_images


def test_equals_the_usual_two_steps():
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.4])
    expected = (images.double() / 255 - mean.double().view(3, 1, 1)) / std.double().view(3, 1, 1)
    # Two roundings of numbers up to |x - mean|/std ≤ 5.
    torch.testing.assert_close(normalize_images(images, mean, std).double(), expected, rtol=0, atol=5 * 2**-22)
