import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from lightning_reg.init.initialization import initialize_
from lightning_reg.init.lsuv import activation_scale, lsuv_
from lightning_reg.settings import SettingError


class Residual(nn.Module):
    def __init__(self, width, norm):
        super().__init__()
        # Deliberately not in the order in which they run.
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.norm = norm

    def forward(self, inputs):
        return inputs + self.second(torch.relu(self.norm(self.first(inputs))))


def dense():
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 5))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=4),
        nn.LeakyReLU(),
        nn.ConvTranspose2d(16, 8, 4, stride=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def residual():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        *(
            Residual(8, norm)
            for norm in (nn.Identity(), nn.BatchNorm2d(8), nn.InstanceNorm2d(8, track_running_stats=True))
        ),
        nn.ReLU(),
    )


NETWORKS = {
    "dense": (dense, (64, 20)),
    "convolutional": (convolutional, (16, 3, 12, 12)),
    "residual": (residual, (16, 3, 10, 10)),
}


def output_variances(network, inputs):
    """Of every layer, by hooks of their own; dropout is off and norms use the statistics of the batch."""
    for module in network.modules():
        module.training = not isinstance(module, nn.Dropout)
    found = {}
    for name, layer in network.named_modules():
        if hasattr(layer, "weight") and not isinstance(layer, nn.modules.batchnorm._NormBase):
            layer.register_forward_hook(lambda _, __, output, name=name: found.update({name: output.double()}))
    with torch.no_grad():
        network(inputs)
    return {name: output.var(correction=0).item() for name, output in found.items()}


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("scale", [1e-3, 100.0])
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_layer_reaches_unit_variance(kind, scale, orthogonal):
    torch.manual_seed(0)
    make, shape = NETWORKS[kind]
    network, inputs = make(), scale * (torch.randn(shape) + 0.5)
    result = lsuv_(network, inputs, orthogonal=orthogonal)
    found = output_variances(network, inputs)
    assert result.left == []
    assert list(result.variances) == list(found)  # in the order in which they run
    for name, variance in found.items():
        assert variance == pytest.approx(1, abs=0.05)
        # Both are the variance of the same numbers, once in float32.
        assert result.variances[name] == pytest.approx(variance, rel=1e-4)


def test_smaller_tolerance_is_reached_too():
    torch.manual_seed(0)
    network, inputs = dense(), torch.randn(64, 20)
    lsuv_(network, inputs, tolerance=1e-4)
    assert list(output_variances(network, inputs).values()) == pytest.approx([1, 1, 1], abs=1e-4)


def test_start_is_orthonormal_up_to_the_scale_and_without_biases():
    torch.manual_seed(0)
    network = dense()
    lsuv_(network, torch.randn(64, 20))
    for layer in (network[3], network[5]):
        gram = (layer.weight @ layer.weight.T).detach()
        # A multiple of the identity, but for the rounding of a decomposition in float32.
        assert torch.allclose(gram, gram[0, 0] * torch.eye(len(gram)), atol=1e-5 * gram[0, 0].item())
        assert not layer.bias.any()


def test_weights_and_biases_of_ones_own_are_only_scaled():
    torch.manual_seed(0)
    network, inputs = dense(), 5 * torch.randn(64, 20)
    before = {name: value.clone() for name, value in network.named_parameters()}
    lsuv_(network, inputs, orthogonal=False)
    for index in (0, 3, 5):
        ratios = [network.get_parameter(f"{index}.{leaf}") / before[f"{index}.{leaf}"] for leaf in ("weight", "bias")]
        torch.testing.assert_close(ratios[0], ratios[1][0].expand_as(ratios[0]))
        torch.testing.assert_close(ratios[1], ratios[1][0].expand_as(ratios[1]))


def test_two_passes_do_it():
    torch.manual_seed(0)
    network, passes = dense(), []
    network.register_forward_hook(lambda *_: passes.append(1))
    lsuv_(network, 100 * torch.randn(64, 20))
    assert len(passes) == 2  # the second one only finds that all is right


class Failing(nn.Module):
    def forward(self, inputs):
        raise RuntimeError("no")


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_else_is_changed_even_when_the_network_fails(fails):
    network = nn.Sequential(residual(), Failing() if fails else nn.Identity()).train()
    network[0][2].eval()
    network[0][2].first.register_forward_hook(lambda *_: None)
    modes = [module.training for module in network.modules()]
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    if fails:
        with pytest.raises(RuntimeError, match="no"):
            lsuv_(network, torch.randn(8, 3, 10, 10))
    else:
        lsuv_(network, torch.randn(8, 3, 10, 10))
    assert [module.training for module in network.modules()] == modes
    assert len(buffers) == 6
    assert all(torch.equal(value, buffers[name]) for name, value in network.named_buffers())
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()) == 1
    assert all(value.grad is None and value.requires_grad for value in network.parameters())


class Shared(nn.Module):
    """A layer that runs twice, two with the same weights, one with those of an embedding, and one that never runs."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.twice, self.tied, self.same = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.same.weight = self.tied.weight
        self.idle = nn.Linear(16, 16)
        self.head = nn.Linear(16, 50)
        self.head.weight = self.embedding.weight

    def forward(self, tokens, scale):
        hidden = torch.tanh(self.twice(self.embedding(tokens) * scale))
        hidden = torch.tanh(self.twice(hidden))
        return self.head(self.same(torch.tanh(self.tied(hidden))))


def test_shared_weights_are_scaled_once_and_what_is_left_is_said():
    torch.manual_seed(0)
    network = Shared()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = lsuv_(network, (torch.randint(50, (64, 7)), 3.0))
    assert list(result.variances) == ["twice", "tied"]
    assert result.left == ["same", "idle", "head"]
    for name in ("embedding.weight", "idle.weight", "idle.bias", "head.weight", "head.bias"):
        assert torch.equal(network.state_dict()[name], before[name])


class SelfNormalized(nn.Linear):
    """Whose outputs don't follow the size of its weights."""

    def forward(self, inputs):
        return nn.functional.linear(inputs, self.weight / self.weight.norm())


def linear_with(bias):
    layer = nn.Linear(4, 1)
    nn.init.constant_(layer.bias, bias)
    return layer


@pytest.mark.parametrize(
    ("make", "inputs", "settings", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(5, 4), {}, "'0' are all 0"),
        (
            lambda: nn.Sequential(nn.Identity(), linear_with(0.3)),
            torch.full((5, 4), 0.1),
            {"orthogonal": False},
            "every layer vary, but those of '1' are all 0",
        ),
        (dense, torch.full((5, 20), math.inf), {}, "those of '0' are not finite"),
        (
            lambda: nn.Sequential(SelfNormalized(4, 4)),
            torch.randn(5, 4),
            {},
            "max_iterations=10 the variance of 0 is not",
        ),
        (nn.ReLU, torch.randn(5, 4), {}, "must run at least one linear or convolutional layer"),
        (lambda: nn.Sequential(spectral_norm(nn.Linear(4, 4))), torch.randn(5, 4), {}, "weight of 0 is computed from"),
        (dense, torch.randn(5, 20), {"tolerance": 0}, r"tolerance must be in \(0, ∞\), but is 0"),
        (dense, torch.randn(5, 20), {"max_iterations": 0}, "max_iterations must be a whole number of at least 1"),
    ],
)
def test_what_can_not_be_scaled_is_refused(make, inputs, settings, message):
    torch.manual_seed(0)
    with pytest.raises(SettingError, match=message):
        lsuv_(make(), inputs, **settings)


def test_activation_scale_is_mean_and_standard_deviation_of_what_layers_return():
    torch.manual_seed(0)
    network, inputs = dense(), torch.randn(64, 20)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = activation_scale(network, inputs, types=(nn.Linear, nn.Tanh))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    network.eval()
    for name, (mean, std) in found.items():
        expected = network[: int(name) + 1](inputs).double()
        # Computed in float32: relative to the size of the numbers, a few roundings.
        assert mean == pytest.approx(expected.mean().item(), abs=1e-6)
        assert std == pytest.approx(expected.std(correction=0).item(), rel=1e-5)
    assert list(found) == ["0", "3", "4", "5"]
    assert list(activation_scale(network, inputs)) == ["0", "3", "5"]


def test_activation_scale_of_layers_that_return_more_than_a_tensor_is_refused():
    with pytest.raises(SettingError, match="'0' returns a tuple"):
        activation_scale(nn.Sequential(nn.LSTM(4, 4)), torch.randn(5, 4), types=nn.LSTM)


WIDTH, DEPTH = 512, 30


def deep_network(scheme):
    torch.manual_seed(0)
    network = nn.Sequential(*(layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))
    initialize_(network, scheme, nn.ReLU())
    return network


@pytest.mark.parametrize("scheme", ["kaiming_normal", "kaiming_uniform", "auto"])
def test_kaiming_carries_activations_through_thirty_layers(scheme):
    """Behind a ReLU the scale is √(1 - 1/π) = 0.83, but for the weights that are drawn.

    A layer of n units multiplies the squared length by 1 ± √(5/n); after 30 of 512, the scale is off by e^±0.27.
    """
    torch.manual_seed(1)
    scales = activation_scale(deep_network(scheme), torch.randn(256, WIDTH), types=nn.ReLU)
    assert len(scales) == DEPTH
    assert all(0.5 <= std <= 2 for _, std in scales.values())


def test_small_normal_lets_activations_vanish():
    scales = activation_scale(deep_network("small_normal"), torch.randn(256, WIDTH), types=nn.ReLU)
    stds = [std for _, std in scales.values()]
    factor = 0.02 * math.sqrt(WIDTH / 2)  # of one layer: σ·√(n/2)
    assert all(after < before for before, after in pairwise(stds))
    assert stds[-1] < 1e-6
    # The spread of above, four times.
    assert abs(math.log(stds[-1]) - DEPTH * math.log(factor)) <= 4 * 0.27 + 0.2  # √(1 - 1/π) = e^-0.19
