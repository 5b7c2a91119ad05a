import math

import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from lightning_reg.functional.forward.concrete_dropout import concrete_mask
from lightning_reg.nn import ConcreteDropout, concrete_penalty
from lightning_reg.optim import weight_decay_groups
from lightning_reg.settings import SettingError


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.7])
def test_mask_drops_with_probability_p_whatever_the_temperature(p):
    """The relaxed mask is below one half exactly where the hard one is 0."""
    uniform = torch.rand(100_000, dtype=torch.float64)
    for temperature in (0.01, 0.1, 0.5):
        mask = concrete_mask(uniform, torch.tensor(math.log(p / (1 - p)), dtype=torch.float64), temperature)
        dropped = (mask < 0.5).double().mean()
        assert abs(dropped - p) <= 4 * math.sqrt(p * (1 - p) / len(uniform))


def test_mask_has_a_finite_gradient_at_the_ends_of_the_uniform():
    logit = torch.tensor(0.0, requires_grad=True)
    concrete_mask(torch.tensor([0.0, 1 - 2**-24]), logit, 0.1).sum().backward()
    assert torch.isfinite(logit.grad)


def test_mask_gradient():
    uniform = torch.rand(20, dtype=torch.float64)
    logit = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda logit: concrete_mask(uniform, logit, 0.3), logit)


@pytest.mark.parametrize(
    ("layer", "shape", "mask_shape"),
    [
        (nn.Linear(6, 3), (5, 6), (5, 6)),
        (nn.Linear(6, 3), (5, 4, 6), (5, 4, 6)),
        (nn.Conv2d(6, 3, 1), (5, 6, 4, 4), (5, 6, 1, 1)),
        (nn.ConvTranspose1d(6, 3, 1), (5, 6, 4), (5, 6, 1)),
    ],
    ids=["linear", "sequence", "conv", "transposed"],
)
def test_layer_is_run_on_masked_inputs(layer, shape, mask_shape):
    dropping = ConcreteDropout(layer, p=0.3, temperature=0.2)
    inputs = torch.randn(shape)
    torch.manual_seed(4)
    out = dropping(inputs)
    torch.manual_seed(4)
    uniform = torch.empty(mask_shape).uniform_()
    mask = 1 - torch.sigmoid((math.log(0.3 / 0.7) + uniform.log() - (1 - uniform).log()) / 0.2)
    torch.testing.assert_close(out, layer(inputs * mask / 0.7))
    assert torch.equal(dropping.eval()(inputs), layer(inputs))


def test_penalty_is_the_papers():
    """Written for a layer that doesn't rescale, M = W / (1 - p), as the paper derives it."""
    layer = ConcreteDropout(nn.Linear(5, 3), p=0.2, length_scale=0.7).double()
    p = layer.p_logit.sigmoid()
    weight = layer.layer.weight / (1 - p)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    expected = (0.7**2 * (1 - p) / 2 * weight.square().sum() - 5 * entropy) / 50
    torch.testing.assert_close(concrete_penalty(layer, 50), expected, rtol=1e-12, atol=0)


TEMPERATURE = 0.05


def optimum(noise, count, features, length_scale):
    """Least expected loss of y = Σx + noise on whitened inputs, over one size of the weights and the rate, by scipy.

    A mask m that is divided by 1 - p makes of an input with weight a, whose true weight is 1, the expected squared
    error 1 - 2 a E[m] / (1 - p) + a² E[m²] / (1 - p)²; divided by 2 noise² it is the negative log likelihood. The
    moments of the relaxed mask are integrated over u.
    """
    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    uniform = (grid[1:] + grid[:-1]) / 2

    def loss(params):
        size, logit = params
        p = 1 / (1 + math.exp(-logit))
        mask = 1 - torch.sigmoid((logit + torch.logit(uniform)) / TEMPERATURE)
        first, second = mask.mean().item() / (1 - p), mask.square().mean().item() / (1 - p) ** 2
        error = features * (1 - 2 * size * first + size**2 * second)
        entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
        kl = length_scale**2 / (2 * (1 - p)) * features * size**2 - features * entropy
        return error / (2 * noise**2) + kl / count

    result = minimize(loss, [0.9, -2.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10})
    return 1 / (1 + math.exp(-result.x[1]))


@pytest.mark.parametrize("noise", [0.8, 1.0, 2.0])
def test_rate_moves_to_the_optimum_of_a_regression_whose_noise_is_known(noise):
    """The noisier the targets, the less the weights are worth, and the higher the rate."""
    count, features, length_scale = 4, 8, 0.5
    layer = ConcreteDropout(
        nn.Linear(features, 1, bias=False), p=0.2, length_scale=length_scale, temperature=TEMPERATURE
    )
    nn.init.ones_(layer.layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    seen = []
    for step in range(4000):
        optimizer.param_groups[0]["lr"] = 0.05 if step < 2000 else 0.01
        inputs = torch.randn(256, features)
        # Of the expected loss: the noise of targets would only add a constant to it.
        errors = layer(inputs) - inputs.sum(1, keepdim=True)
        loss = errors.square().mean() / (2 * noise**2) + concrete_penalty(layer, count)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= 2500:
            seen.append(layer.p)
    # Stochastic gradients keep the rate in motion: at this learning rate the mean is within 3 % of the optimum. Twice
    # the penalty would move it by 14 % at the greatest noise, and by far more at the others.
    expected = optimum(noise, count, features, length_scale)
    assert sum(seen) / len(seen) == pytest.approx(expected, rel=0.05)


def test_compiles_without_a_graph_break_and_keeps_the_dtype_under_autocast():
    torch._dynamo.reset()
    layer = ConcreteDropout(nn.Linear(6, 3))
    torch.compile(layer, backend="aot_eager", fullgraph=True)(torch.randn(2, 6)).sum().backward()
    assert layer.p_logit.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 6)).dtype == torch.bfloat16
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConcreteDropout(nn.Linear(2, 2), p=0.0), r"p must be in \(0, 1\), but is 0.0"),
        (lambda: ConcreteDropout(nn.Linear(2, 2), length_scale=-1.0), r"length_scale must be in \[0, ∞\), but is -1.0"),
        (lambda: ConcreteDropout(nn.Linear(2, 2), temperature=0.0), r"temperature must be in \(0, ∞\), but is 0.0"),
        (lambda: concrete_penalty(nn.ReLU(), 4), "module must have a ConcreteDropout layer, but ReLU has none"),
        (lambda: ConcreteDropout(nn.ReLU()), "layer must be a Linear or a convolution, but is a ReLU"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()


def test_rate_is_spared_by_decay_because_the_layer_says_so():
    """And not because of how the parameter is called: a layer with another one called so is none of its business."""
    network = nn.Sequential(ConcreteDropout(nn.Linear(4, 3)), nn.Linear(3, 2))
    assert network[0].no_weight_decay() == {"p_logit"}
    decay, spared = weight_decay_groups(network)
    assert {id(parameter) for parameter in decay["params"]} == {id(network[0].layer.weight), id(network[1].weight)}
    assert id(network[0].p_logit) in map(id, spared["params"])
    network.p_logit = nn.Parameter(torch.tensor(0.0))
    assert any(parameter is network.p_logit for parameter in weight_decay_groups(network)[0]["params"])
