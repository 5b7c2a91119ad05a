import torch

from lightning_reg.functional.categories import one_hot_columns


def test_equals_torchs_one_hot_of_each_column():
    sizes = [3, 2, 7]
    generator = torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randint(0, size, (50,), generator=generator) for size in sizes], 1)
    expected = [torch.nn.functional.one_hot(column, size) for column, size in zip(codes.T, sizes, strict=True)]
    assert torch.equal(one_hot_columns(codes, sizes), torch.cat(expected, 1).float())
