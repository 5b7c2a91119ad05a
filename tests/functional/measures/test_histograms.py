"""Counts are numpy's."""

import numpy as np
import pytest
import torch

from lightning_reg.functional.measures.histograms import (
    FINE_BINS,
    fine_edges,
    fine_histogram,
    linear_histogram,
    quantiles,
    rebinned,
)


def normal(count=50_000, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def test_fine_counts_are_numpys_between_the_same_edges():
    values = normal() * 3
    edges = fine_edges()
    assert len(edges) == FINE_BINS + 1
    assert (edges.diff() > 0).all()
    # numpy's bins begin with their smaller border; those below zero, mirrored, with their larger.
    positive, _ = np.histogram(values[values > 0].double().numpy(), edges[FINE_BINS // 2 :].numpy())
    negative, _ = np.histogram(-values[values < 0].double().numpy(), edges[FINE_BINS // 2 :].numpy())
    expected = np.concatenate([negative[::-1], positive])
    assert np.array_equal(fine_histogram(values).numpy(), expected)


def test_signed_zero_and_what_is_out_of_range_and_not_finite_are_counted():
    counts = fine_histogram(torch.tensor([0.0, -0.0, 1e-30, torch.inf, 1e30, -torch.inf, torch.nan]))
    assert counts[FINE_BINS // 2] == 3
    assert counts[-1] + counts[0] == 4
    assert fine_histogram(torch.zeros(0)).sum() == 0


def test_a_sample_counts_for_all():
    values = normal(1_000_003)
    counts = fine_histogram(values, most=20_000)
    assert counts.sum().item() == pytest.approx(len(values))
    # Within 5 standard errors of a share, at most 0.5 / √n.
    share = counts[: FINE_BINS // 2].sum() / counts.sum()
    assert abs(share.item() - 0.5) < 5 * 0.5 / 20_000**0.5 * 1.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    values = normal(1000).to(dtype)
    assert torch.equal(fine_histogram(values), fine_histogram(values.float()))


def test_compiled_is_eager():
    compiled = torch.compile(fine_histogram, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(normal(1000)), fine_histogram(normal(1000)))


def test_rebinned_keeps_every_value_and_is_right_where_borders_agree():
    values = normal()
    edges = torch.tensor([-8.0, -2.0, -0.5, 0.0, 0.25, 1.0, 8.0])
    expected, _ = np.histogram(values.numpy(), edges.numpy())
    assert rebinned(fine_histogram(values), edges).tolist() == expected.tolist()


def test_rebinned_between_borders_of_the_fine_bins():
    values = normal()
    edges = torch.linspace(-5, 5, 65)
    found = rebinned(fine_histogram(values), edges)
    expected, _ = np.histogram(values.numpy(), edges.numpy())
    assert found.sum() == len(values)
    # A fine bin is split as if its values were spread evenly: to a part of what lies in it, 3 % of the value wide.
    assert np.abs(found.numpy() - expected).max() < 0.03 * expected.max() + 5 * expected.max() ** 0.5


def test_zeros_lie_in_the_bin_that_begins_with_zero():
    found = rebinned(fine_histogram(torch.zeros(5)), torch.tensor([-1.0, 0.0, 1.0]))
    assert found.tolist() == [0, 5]
    found = rebinned(fine_histogram(torch.zeros(5)), torch.tensor([-1.0, 1e-6, 1.0]))
    assert found.tolist() == [5, 0]


def test_quantiles_to_a_bins_width():
    values = normal() + 1
    shares = torch.tensor([0.01, 0.25, 0.5, 0.9])
    found = quantiles(fine_histogram(values), shares)
    expected = torch.quantile(values, shares).double()
    torch.testing.assert_close(found, expected, rtol=1 / 32, atol=1e-4)


def test_outermost_quantiles_are_the_extremes():
    values = normal(1000).abs() + 1
    found = quantiles(fine_histogram(values), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(found, torch.stack([values.min(), values.max()]).double(), rtol=1 / 32, atol=0)


@pytest.mark.parametrize("count", [1, 7, 300_000])
def test_linear_counts_are_numpys(count):
    # Of multiples of 1/8 between -4 and 4, and 64 bins, no quotient is rounded.
    values = torch.randint(-32, 33, (count,), generator=torch.Generator().manual_seed(0)) / 8
    if count > 7:
        values[:2] = torch.tensor([-4.0, 4.0])
    low, high = values.min(), values.max()
    found = linear_histogram(values, low, high, 64)
    if count == 1:
        assert found.tolist() == [1] + 63 * [0]
    elif count > 7:
        assert found.tolist() == np.histogram(values.numpy(), 64)[0].tolist()
    assert found.sum() == count


def test_linear_counts_of_what_is_not_finite_or_empty():
    values = torch.tensor([0.0, torch.nan, torch.inf, -torch.inf, 1.0])
    assert linear_histogram(values, torch.tensor(0.0), torch.tensor(1.0), 2).tolist() == [1, 1]
    empty = torch.zeros(0)
    assert linear_histogram(empty, torch.tensor(0.0), torch.tensor(0.0), 3).tolist() == [0, 0, 0]
    nan = torch.tensor(torch.nan)
    assert linear_histogram(values, nan, nan, 2).sum() == 0


def test_linear_counts_of_the_largest_numbers():
    values = torch.tensor([-1e38, 0.0, 1e38])
    assert linear_histogram(values, values.min(), values.max(), 2).tolist() == [1, 2]
