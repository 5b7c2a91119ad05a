import math

import pytest
import torch
from torch import nn

from lightning_reg.functional.initialization import INITIALIZATIONS, initialize_, scheme_for_activation
from lightning_reg.settings import SettingError

FAN_IN, FAN_OUT = 300, 200
# Variance of every scheme by its own formula; a uniform on [-b, b] has b²/3.
VARIANCES = {
    "zeros": 0.0,
    "uniform": 0.05**2 / 3,
    "normal": 0.05**2,
    "small_normal": 0.02**2,
    "xavier_normal": 2 / (FAN_IN + FAN_OUT),
    "xavier_uniform": 2 / (FAN_IN + FAN_OUT),
    "kaiming_normal": 2 / FAN_IN,
    "kaiming_uniform": 2 / FAN_IN,
    "kaiming_normal_fan_out": 2 / FAN_OUT,
    "lecun_normal": 1 / FAN_IN,
    # Of n = min(in, out) orthonormal vectors in the larger space: mean square 1/max.
    "orthogonal": 1 / FAN_IN,
    # A normal cut at two standard deviations.
    "truncated_normal": 0.02**2 * (1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))),
}


def test_every_scheme_is_checked():
    assert set(VARIANCES) == set(INITIALIZATIONS)


@pytest.mark.parametrize("scheme", sorted(INITIALIZATIONS))
def test_mean_and_variance_are_the_formulas(scheme):
    torch.manual_seed(0)
    layer = nn.Linear(FAN_IN, FAN_OUT)
    initialize_(layer, scheme, nn.ReLU())
    count = layer.weight.numel()
    variance = VARIANCES[scheme]
    # Standard errors from the sample size: of a mean σ/√n, of a variance at most σ²·√(2/n) (normal; others less).
    assert abs(layer.weight.mean().item()) <= 4 * math.sqrt(variance / count)
    assert abs(layer.weight.var().item() - variance) <= 4 * variance * math.sqrt(2 / count)
    assert not layer.bias.any()


@pytest.mark.parametrize(
    ("activation", "variance"),
    [
        (nn.ReLU(), 2 / FAN_IN),
        (nn.LeakyReLU(0.5), 2 / (1 + 0.25) / FAN_IN),
        (nn.SELU(), 1 / FAN_IN),
        (nn.Tanh(), 2 / (FAN_IN + FAN_OUT)),
        (nn.Sigmoid(), 2 / (FAN_IN + FAN_OUT)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_auto_follows_the_activation(activation, variance):
    torch.manual_seed(0)
    weight = torch.empty(FAN_OUT, FAN_IN)
    scheme_for_activation(activation)(weight)
    assert abs(weight.var().item() - variance) <= 4 * variance * math.sqrt(2 / weight.numel())


def test_default_touches_nothing():
    layer = nn.Linear(3, 3)
    before = layer.weight.clone()
    initialize_(layer, "default", nn.ReLU())
    assert torch.equal(layer.weight, before)


def test_function_and_import_path_fill_the_weights():
    layers = [nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)]
    initialize_(layers[0], nn.init.ones_, nn.ReLU())
    initialize_(layers[1], "torch.nn.init.ones_", nn.ReLU())
    assert all((layer.weight == 1).all() for layer in layers)


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(SettingError, match="did you mean 'kaiming_normal'"):
        initialize_(nn.Linear(2, 2), "kaiming_norml", nn.ReLU())
