import math

import pytest
import torch
from torch import nn

from lightning_reg.nn import ConcreteDropout, Dropout, GaussianNoise, drop_connected, monte_carlo_predict
from lightning_reg.nn.insertion import Insertion
from lightning_reg.nn.monte_carlo import stochastic_passes
from lightning_reg.nn.rates import rates
from lightning_reg.settings import SettingError


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


def passes(model, inputs, count):
    """By hand: the very same draws."""
    torch.manual_seed(1)
    model.eval()
    for module in model.modules():
        module.training = isinstance(module, nn.Dropout)
    return torch.stack([model(inputs) for _ in range(count)]).detach()


def test_mean_and_uncertainties_are_their_formulas():
    model, inputs = network(), torch.randn(5, 4)
    samples = passes(model, inputs, 30).softmax(2).double()
    model.train()
    torch.manual_seed(1)
    prediction = monte_carlo_predict(model, inputs, num_samples=30)
    entropy = -(samples.mean(0) * samples.mean(0).log()).sum(1)
    expected = -(samples * samples.log()).sum(2).mean(0)
    for found, wanted in zip(
        prediction, (samples.mean(0), samples.std(0, correction=0), entropy, entropy - expected), strict=True
    ):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_values_of_a_regression_have_no_entropy():
    model, inputs = network(), torch.randn(5, 4)
    samples = passes(model, inputs, 10)
    torch.manual_seed(1)
    mean, std, *entropies = monte_carlo_predict(model, inputs, num_samples=10, outputs="values")
    torch.testing.assert_close(mean, samples.mean(0))
    torch.testing.assert_close(std, samples.std(0, correction=0))
    assert entropies == [None, None]


def test_std_has_its_digits_far_from_zero():
    """A mean of squares less a squared mean would have none left."""
    model = nn.Sequential(GaussianNoise(0.01))
    std = monte_carlo_predict(model, torch.full((2000,), 1e4).double(), num_samples=50, outputs="values").std
    assert std.square().mean().sqrt().item() == pytest.approx(0.01 * math.sqrt(49 / 50), rel=4 / math.sqrt(2 * 100_000))


def test_probabilities_are_taken_as_they_are_and_classes_lie_in_any_dimension():
    model = nn.Sequential(nn.Dropout(0.5), nn.Softmax(1))
    prediction = monte_carlo_predict(model, torch.randn(2, 3, 4, 4), num_samples=4, outputs="probabilities")
    torch.testing.assert_close(prediction.mean.sum(1), torch.ones(2, 4, 4))
    assert prediction.predictive_entropy.shape == (2, 4, 4)
    assert (prediction.mutual_information >= 0).all()


def test_nothing_but_dropout_is_turned_on():
    model, inputs = network(), torch.randn(8, 4)
    statistics = model[1].running_mean.clone()
    with stochastic_passes(model):
        assert [module.training for module in model] == [False, False, False, True, False]
        model(inputs)
    assert torch.equal(model[1].running_mean, statistics)


@pytest.mark.parametrize("fails", [False, True])
def test_every_mode_is_restored(fails):
    model = network()
    model[0].eval()
    model[3].eval()
    before = [module.training for module in model.modules()]
    inputs = torch.randn(2, 5 if fails else 4)
    if fails:
        with pytest.raises(RuntimeError):
            monte_carlo_predict(model, inputs)
    else:
        monte_carlo_predict(model, inputs)
    assert [module.training for module in model.modules()] == before


def inserted():
    host = nn.Linear(8, 8)
    host.register_forward_hook(Insertion(Dropout(0.5), "0"), with_kwargs=True)
    return host


class DropPath(nn.Module):
    """Somebody else's, known by its name."""

    def __init__(self):
        super().__init__()
        self.drop_prob = 0.5

    def forward(self, inputs):
        return nn.functional.dropout(inputs, self.drop_prob, self.training)


@pytest.mark.parametrize(
    "model",
    [
        nn.Dropout(0.5),
        nn.AlphaDropout(0.5),
        Dropout(0.5),
        drop_connected(nn.Linear(8, 8), 0.5),
        ConcreteDropout(nn.Linear(8, 8), p=0.5),
        inserted(),
        DropPath(),
        nn.LSTM(8, 8, num_layers=2, dropout=0.5),
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True),
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True), 2, enable_nested_tensor=False
        ),
    ],
    ids=lambda model: type(model).__name__,
)
def test_whatever_drops_something_is_turned_on(model):
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, inputs):
            out = self.model(inputs)
            return out[0] if isinstance(out, tuple) else out

    whole = First().eval()
    inputs = torch.randn(3, 4, 8)
    assert torch.equal(whole(inputs), whole(inputs))
    assert monte_carlo_predict(whole, inputs, num_samples=5, outputs="values").std.max() > 0
    assert torch.equal(whole(inputs), whole(inputs))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: monte_carlo_predict(nn.Linear(2, 2), torch.zeros(1, 2)), "must have a layer that drops.*has Linear"),
        (lambda: monte_carlo_predict(nn.Dropout(0.0), torch.zeros(1, 2)), "must have a layer that drops"),
        (lambda: monte_carlo_predict(nn.Dropout(), torch.zeros(1, 2), num_samples=0), "num_samples must be a whole"),
        (lambda: monte_carlo_predict(nn.Dropout(), torch.zeros(1, 2), outputs="x"), "outputs must be one of logits"),
        (lambda: monte_carlo_predict(torch.relu, torch.zeros(1)), "model must be a torch.nn.Module, but is a builtin"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(SettingError, match=message):
        call()


def test_rates_of_everybodys_layers_are_found():
    network = nn.ModuleDict(
        {
            "torchs": nn.Dropout(0.1),
            "ours": Dropout(0.2),
            "weights": drop_connected(nn.Linear(2, 2), 0.3),
            "foreign": DropPath(),
            "recurrent": nn.GRU(2, 2, num_layers=2, dropout=0.4),
            "attention": nn.MultiheadAttention(2, 1, dropout=0.6),
            "inserted": inserted(),
            "learned": ConcreteDropout(nn.Linear(2, 2)),
            "norm": nn.BatchNorm1d(2),
        }
    )
    assert {rate.name: rate.value for rate in rates(network)} == {
        "torchs": 0.1,
        "ours": 0.2,
        "weights": 0.3,
        "foreign": 0.5,
        "recurrent": 0.4,
        "attention": 0.6,
        "inserted": 0.5,
    }
