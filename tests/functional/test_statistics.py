import torch

from lightning_reg.functional.statistics import channel_mean_and_std


def test_equals_torchs_in_float64():
    pictures = torch.randint(0, 256, (9000, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    chosen = torch.arange(0, 9000, 2)
    values = pictures[chosen].double() / 255
    mean, std = channel_mean_and_std(pictures, chosen)
    torch.testing.assert_close(mean, values.mean((0, 2, 3)).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(std, values.std((0, 2, 3), correction=0).float(), rtol=1e-6, atol=0)


def test_constant_channel_has_a_deviation_that_can_be_divided_by():
    mean, std = channel_mean_and_std(torch.full((3, 1, 2, 2), 51, dtype=torch.uint8))
    torch.testing.assert_close(mean, torch.tensor([0.2]))
    assert std.tolist() == [1.0]
