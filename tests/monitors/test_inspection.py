"""A look at a network without a Trainer."""

import pytest
import torch
from torch import nn

from lightning_reg.monitors.inspection import activation_statistics
from lightning_reg.settings import SettingError
from tests.conformance.problem import network, samples


def test_statistics_are_those_of_the_outputs():
    model, inputs = network(), samples()[:][0]
    table = activation_statistics(model, inputs)
    kept = {}
    model.act.register_forward_hook(lambda _, __, out: kept.update(act=out.detach().double()))
    model(inputs)
    assert table["act"]["mean"] == pytest.approx(kept["act"].mean().item(), rel=1e-5)
    assert table["act"]["std"] == pytest.approx(kept["act"].std(correction=0).item(), rel=1e-5)
    assert table["act"]["saturated"] == (kept["act"].abs() >= 0.98).double().mean()
    assert list(table) == ["frozen", "first", "norm", "hidden", "tied", "act", "head"]


def test_dead_units_of_a_batch():
    layer = nn.Linear(2, 4)
    nn.init.zeros_(layer.weight)
    layer.bias = nn.Parameter(torch.tensor([1.0, -1.0, -1.0, 0.0]))
    table = activation_statistics(nn.Sequential(layer, nn.ReLU()), torch.randn(8, 2))
    assert table["1"]["dead"] == 0.75
    assert "dead" in str(table).splitlines()[0]


def test_the_model_and_random_numbers_are_left_as_they_were():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    activation_statistics(model, torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training


def test_hooks_are_gone_after_an_exception():
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(RuntimeError):
        activation_statistics(model, torch.zeros(2, 5))
    assert not any(module._forward_hooks for module in model.modules())


def test_bad_input():
    with pytest.raises(SettingError, match="include pattern 'x' matches no module"):
        activation_statistics(network(), torch.zeros(2, 6), include="x")
    with pytest.raises(SettingError, match="include must name modules that run"):
        activation_statistics(network(), torch.zeros(2, 6), include="unused")
