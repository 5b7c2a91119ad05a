"""Statistics are those that float64 gives."""

import math

import pytest
import torch
from scipy.stats import rankdata
from sklearn.preprocessing import QuantileTransformer

from lightning_reg.functional.statistics import (
    Summary,
    channel_mean_and_std,
    combined,
    normal_scores,
    quantile_knots,
    stable_rank,
    summarized,
)


def test_equals_torchs_in_float64():
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


@pytest.mark.parametrize("count", [1, 5, 131_072, 300_001])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_summary_is_that_of_float64(count, shift):
    values = torch.randn(count, generator=torch.Generator().manual_seed(0)) + shift
    values[::7] = 0.0 if shift == 0 else shift
    exact = values.double()
    found = Summary(*summarized(values).tolist()).statistics()
    # Roundings of a sum by pairs; the deviation doesn't lose more where the mean is a hundred times as large.
    assert found["mean"] == pytest.approx(exact.mean().item(), rel=2e-6, abs=1e-6)
    assert found["std"] == pytest.approx(exact.std(correction=0).item(), rel=2e-5, abs=1e-7)
    assert found["norm"] == pytest.approx(exact.norm().item(), rel=2e-6)
    assert found["zeros"] == pytest.approx((exact == 0).double().mean().item())
    assert (found["min"], found["max"]) == (exact.min().item(), exact.max().item())


def test_summary_of_nothing_and_of_what_is_not_finite():
    assert Summary(*summarized(torch.zeros(0)).tolist()).statistics()["mean"] == 0
    assert math.isnan(Summary(*summarized(torch.tensor([1.0, torch.nan])).tolist()).smallest)
    assert Summary(*summarized(torch.tensor([1.0, torch.inf])).tolist()).largest == math.inf


def test_combined_is_the_summary_of_all():
    parts = [torch.randn(count, generator=torch.Generator().manual_seed(count)) + count for count in (3, 10, 500)]
    torch.testing.assert_close(
        combined(torch.stack([summarized(part) for part in parts])), summarized(torch.cat(parts)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (16, 4, 3, 3)])
def test_stable_rank_is_that_of_the_singular_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(matrix.flatten(1).double())
    exact = (values.square().sum() / values[0] ** 2).item()
    found = stable_rank(matrix).item()
    # What k power iterations miss of the largest of n eigenvalues where none stands out: 0.87 ln n / (k - 1) of it
    # (Kuczyński and Woźniakowski, 1992).
    missed = 0.87 * math.log(len(values)) / 19
    assert exact * (1 - 1e-5) <= found <= exact / (1 - missed)


def test_stable_rank_of_zeros_and_of_one_direction():
    assert stable_rank(torch.zeros(3, 4)) == 0
    assert stable_rank(torch.ones(3, 4)).item() == pytest.approx(1, rel=1e-5)
