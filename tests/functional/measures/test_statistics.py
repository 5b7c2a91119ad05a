"""Statistics are those that float64 gives."""

import math

import pytest
import torch

from lightning_reg.functional.measures.statistics import Summary, combined, summarized


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
