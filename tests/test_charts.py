"""Pictures of curves, looked at by their pixels."""

from itertools import pairwise

import pytest
import torch

from lightning_reg.charts import Chart, draw, nice_ticks

BLUE, ORANGE = torch.tensor([31, 119, 180]), torch.tensor([217, 95, 2])


def where(picture, colour):
    """Positions (row, column) of a colour below the legend."""
    found = (picture.int() - colour).abs().sum(-1) < 60
    found[:55] = False
    return found.nonzero()


def test_a_curve_goes_where_its_values_are():
    picture = draw([Chart("loss", [0, 1, 2], {"train": [2.0, 1.0, 1.0], "validation": [2.0, 2.0, 2.0]})])
    blue, orange = where(picture, BLUE), where(picture, ORANGE)
    assert blue[:, 0].max() == pytest.approx(220, abs=3)  # the lowest value, on the axis
    assert orange[:, 0].float().std() < 2  # level
    assert orange[:, 0].float().mean() == pytest.approx(62, abs=3)
    assert orange[:, 1].min() == pytest.approx(48, abs=3)
    assert orange[:, 1].max() == pytest.approx(346, abs=3)


def test_far_apart_values_are_on_a_logarithmic_axis():
    picture = draw([Chart("loss", [0, 1, 2], {"train": [1.0, 0.1, 0.01]})])
    middle = where(picture, BLUE)
    middle = middle[(middle[:, 1] - 197).abs() < 3][:, 0].float().mean()
    assert middle == pytest.approx((62 + 220) / 2, abs=3)


@pytest.mark.parametrize(
    "chart",
    [
        Chart("empty", [], {}),
        Chart("one", [3], {"train": [0.5]}, {"best": 3}),
        Chart("level", [0, 1], {"train": [0.0, 0.0]}),
        Chart("broken", [0, 1, 2], {"train": [float("nan"), float("inf"), -1.0]}),
        Chart("negative", [0, 1], {"train": [-5.0, -4.0]}, {"a long name at the very end": 1, "another": 1}),
    ],
    ids=lambda chart: chart.title,
)
def test_anything_can_be_drawn(chart):
    picture = draw([chart, chart])
    assert picture.shape == (520, 360, 3)
    assert picture.dtype == torch.uint8
    assert torch.equal(picture[:260], picture[260:])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.97, 1.0), (-3, 250), (1e-7, 3e-7), (5, 5), (0, 0)])
def test_ticks_enclose_the_range_and_are_evenly_apart(low, high):
    ticks = nice_ticks(low, high)
    span = ticks[-1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * span
    assert ticks[-1] >= high - 1e-6 * span
    assert 2 <= len(ticks) <= 8
    steps = [after - before for before, after in pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps))
