"""What studies compute, against least squares and derivatives that others have written."""

import numpy as np
import pytest
import torch

from lightning_reg.settings import SettingError
from lightning_reg.studies.functions import batch_norm_backward, ridge_regression
from lightning_reg.studies.functions.regression import _fits, _legendre


def test_polynomials_are_legendres_of_length_one():
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    for degree in (0, 1, 4):
        ours = _legendre(x, degree)
        for n in range(degree + 1):
            theirs = np.polynomial.legendre.Legendre.basis(n)(x.numpy()) * ((2 * n + 1) / 2) ** 0.5
            torch.testing.assert_close(ours[:, n], torch.from_numpy(theirs), rtol=0, atol=1e-13)


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_fits_are_where_the_penalized_error_has_no_slope(l2):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 20, generator=generator, dtype=torch.float64) * 2 - 1
    targets = torch.randn(3, 20, generator=generator, dtype=torch.float64)
    weights = _fits(_legendre(x, 4), targets, l2).requires_grad_()
    errors = ((_legendre(x, 4) @ weights[..., None]).squeeze(-1) - targets) ** 2
    (errors.mean(1) + l2 * (weights[:, 1:] ** 2).sum(1)).sum().backward()
    assert weights.grad.abs().max() < 1e-13


def test_the_parts_sum_to_the_measured_error_within_its_standard_error():
    """Differences in standard errors, over 60 independent seeds: mean 0 ± 4/√60, standard deviation 1 ± 4/√120."""
    differences = torch.tensor([ridge_regression(seed=seed, datasets=50)[0]["difference"] for seed in range(60)])
    assert abs(differences.mean()) < 4 / 60**0.5
    assert abs(differences.std() - 1) < 4 / 120**0.5


def test_capacity_trades_bias_for_variance_and_a_penalty_variance_for_bias():
    low, high = (ridge_regression(seed=0, degree=degree)[0] for degree in (1, 9))
    strong = ridge_regression(seed=0, degree=9, l2=0.1)[0]
    assert low["bias_squared"] > 10 * high["bias_squared"]
    assert low["variance"] < high["variance"]
    assert strong["variance"] < high["variance"]
    assert strong["bias_squared"] > high["bias_squared"]
    assert high["train/error"] < 0.09 < high["test/error"]


def test_without_noise_a_fit_that_can_has_no_error():
    metrics, collected = ridge_regression(seed=0, degree=25, samples=200, noise=0.0, datasets=3)
    assert metrics["test/error"] < 1e-6
    assert collected["decomposition"]["noise"] == 0
    assert metrics["difference"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"degree": 30}, r"samples must be more than degree \(30\) where l2 is 0, but is 30"),
        ({"degree": -1}, "degree must be .* but is -1"),
        ({"l2": -0.1}, "l2 must be .* but is -0.1"),
        ({"datasets": 1}, "datasets must be .* but is 1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(SettingError, match=message):
        ridge_regression(seed=0, **settings)


def test_gradients_by_hand_are_torchs_to_the_last_digits():
    for shape in ((64, 32), (8, 4, 9), (4, 3, 5, 5)):
        exact = batch_norm_backward(seed=1, shape=shape)
        assert all(value < 1e-13 for value in exact.values())
        rounded = batch_norm_backward(seed=1, shape=shape, dtype="float32")
        assert all(value < 1e-5 for value in rounded.values())
        assert rounded["difference/gradients"] > exact["difference/gradients"]
    with pytest.raises(SettingError, match="dtype must be"):
        batch_norm_backward(seed=0, dtype="float16")
