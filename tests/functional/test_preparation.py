"""Scales of channels, normal scores and encoded categories, beside torch, scipy and scikit-learn."""

import pytest
import torch
from scipy.stats import rankdata
from sklearn.preprocessing import QuantileTransformer

from lightning_reg.functional.preparation import (
    channel_mean_and_std,
    normal_scores,
    one_hot_columns,
    quantile_knots,
)


def test_mean_and_deviation_of_channels_are_torchs_in_float64():
    images = torch.randint(0, 256, (9000, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    chosen = torch.arange(0, 9000, 2)
    values = images[chosen].double() / 255
    mean, std = channel_mean_and_std(images, chosen)
    torch.testing.assert_close(mean, values.mean((0, 2, 3)).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(std, values.std((0, 2, 3), correction=0).float(), rtol=1e-6, atol=0)


def test_constant_channel_has_a_deviation_that_can_be_divided_by():
    mean, std = channel_mean_and_std(torch.full((3, 1, 2, 2), 51, dtype=torch.uint8))
    torch.testing.assert_close(mean, torch.tensor([0.2]))
    assert std.tolist() == [1.0]


@pytest.mark.parametrize("rows", [7, 500, 3000])
def test_normal_scores_are_scikit_learns(rows):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    others = torch.cat([values, torch.randn(100, 2, generator=generator, dtype=torch.float64) * 2])
    oracle = QuantileTransformer(n_quantiles=min(rows, 1000), output_distribution="normal", subsample=10_000)
    expected = torch.from_numpy(oracle.fit(values.numpy()).transform(others.numpy()))
    knots = quantile_knots(values)
    torch.testing.assert_close(knots, torch.from_numpy(oracle.quantiles_), rtol=0, atol=1e-12)
    # The outermost rank is 1e-7 in both, plus a rounding of 1e-16 at a slope of 1/φ(5.2) = 2e6.
    torch.testing.assert_close(normal_scores(others, knots), expected, rtol=0, atol=1e-9)


def test_equal_values_share_the_middle_of_their_ranks():
    values = torch.randn(500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(3).round()
    expected = (torch.from_numpy(rankdata(values.flatten(), "average")) - 1) / (len(values) - 1)
    scores = normal_scores(values, quantile_knots(values)).flatten()
    torch.testing.assert_close(torch.special.ndtr(scores), expected, rtol=0, atol=1e-12)


def test_normal_scores_of_two_values_are_the_middles_of_their_ranks():
    values = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64).repeat(250).unsqueeze(1)
    scores = normal_scores(torch.tensor([[-1.0], [0.0], [1.0], [2.0]], dtype=torch.float64), quantile_knots(values))
    ranks = torch.special.ndtr(scores.flatten())
    # Of 1000 knots, so to one in a thousand.
    torch.testing.assert_close(ranks, torch.tensor([0.0, 0.375, 0.875, 1.0], dtype=torch.float64), rtol=0, atol=1e-3)


def test_quantile_knots_leave_out_what_is_missing():
    values = torch.tensor([[1.0, float("nan")], [2.0, 5.0], [3.0, 7.0]], dtype=torch.float64)
    assert quantile_knots(values).tolist() == [[1, 5], [2, 6], [3, 7]]


def test_encoded_categories_are_torchs_one_hot_of_each_column():
    sizes = [3, 2, 7]
    generator = torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randint(0, size, (50,), generator=generator) for size in sizes], 1)
    expected = [torch.nn.functional.one_hot(column, size) for column, size in zip(codes.T, sizes, strict=True)]
    assert torch.equal(one_hot_columns(codes, sizes), torch.cat(expected, 1).float())
