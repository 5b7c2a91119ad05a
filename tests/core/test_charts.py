"""Images of curves, looked at by their pixels, and what an import of the package loads of heavy libraries: nothing."""

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch

from lightning_reg.core.charts import Chart, draw

BLUE, ORANGE = torch.tensor([0, 114, 178]), torch.tensor([213, 94, 0])


def where(image, color):
    """Positions (row, column) of a color below the legend."""
    found = (image.int() - color).abs().sum(-1) < 60
    found[:25] = False
    return found.nonzero().float()


def test_a_curve_goes_where_its_values_are():
    image = draw([Chart("loss", [0, 1, 2], {"train": [2.0, 1.0, 1.0], "validation": [2.0, 2.0, 2.0]})])
    blue, orange = where(image, BLUE), where(image, ORANGE)
    assert orange[:, 0].std() < 1  # level
    assert blue[:, 0].min() == pytest.approx(orange[:, 0].min(), abs=2)  # both begin at the highest value
    left, right = orange[:, 1].min(), orange[:, 1].max()
    middle = (left + right) / 2
    low = blue[blue[:, 1] > middle + 5][:, 0]
    assert low.std() < 1
    # Halfway to the second position, the curve is halfway down.
    at_quarter = blue[(blue[:, 1] - (left + middle) / 2).abs() < 1.5][:, 0].mean()
    assert at_quarter == pytest.approx(float(low.mean() + orange[:, 0].mean()) / 2, abs=2)


def test_far_apart_values_are_on_a_logarithmic_axis():
    blue = where(draw([Chart("loss", [0, 1, 2], {"train": [1.0, 0.1, 0.01]})]), BLUE)
    left, right = blue[:, 1].min(), blue[:, 1].max()
    middle = blue[(blue[:, 1] - (left + right) / 2).abs() < 2][:, 0].mean()
    assert middle == pytest.approx(float(blue[:, 0].min() + blue[:, 0].max()) / 2, abs=2)


def test_a_mark_stands_where_it_happened():
    curves = {"train": [1.0, 1.0, 1.0]}
    with_mark = draw([Chart("loss", [0, 1, 2], curves, {"best": 1})]).int()
    gray = ((with_mark - torch.tensor([51, 51, 51])).abs().sum(-1) < 60)[45:200]
    column = gray[:, 100:340].sum(0).argmax() + 100  # right of the axis and its numbers
    blue = where(with_mark, BLUE)[:, 1]
    assert column == pytest.approx(float(blue.min() + blue.max()) / 2, abs=2)


@pytest.mark.parametrize(
    "chart",
    [
        Chart("empty", [], {}),
        Chart("one", [3], {"train": [0.5]}, {"best": 3}),
        Chart("level", [0, 1], {"train": [0.0, 0.0]}),
        Chart("broken", [0, 1, 2], {"train": [float("nan"), float("inf"), -1.0]}),
        Chart("negative", [0, 1], {"train": [-5.0, -4.0]}, {"a long name at the very end": 1, "another": 1}),
        Chart("$a_$", [0, 1], {"_$b": [1.0, 0.01]}),
    ],
    ids=lambda chart: chart.name,
)
def test_anything_can_be_drawn(chart):
    image = draw([chart, chart])
    assert image.shape == (520, 360, 3)
    assert image.dtype == torch.uint8
    assert (image < 128).any()


def test_somebodys_own_style_stays_theirs():
    with mpl.rc_context({"text.usetex": True}):
        assert draw([Chart("loss", [0, 1], {"train": [1.0, 0.5]})]).shape == (260, 360, 3)
        assert mpl.rcParams["text.usetex"]


def test_a_single_measurement_is_a_dot():
    blue = where(draw([Chart("loss", [3], {"train": [0.5]})]), BLUE)
    assert len(blue) > 5
    assert np.ptp(blue[:, 0].numpy()) < 8


def test_an_import_draws_nothing_and_loads_nothing_to_draw_with():
    code = (
        "import sys, lightning_reg, lightning_reg.core.charts\n"
        # torchmetrics imports matplotlib wherever it is installed; what needs torchmetrics can't be looked at here.
        "print(*{'matplotlib', 'jinja2', 'torchmetrics'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
