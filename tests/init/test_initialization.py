import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_reg.init.initialization import (
    INITIALIZATIONS,
    VarianceScaling,
    initialize_,
    scheme_for_activation,
    zero_residual_gamma_,
)
from lightning_reg.settings import SettingError
from tests.init.test_fans import LAYERS, is_orthonormal

# Of a normal cut at two standard deviations, in multiples of σ².
TRUNCATED = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))


def formulas(fan_in, fan_out):
    """Variance of every scheme by its own formula; a uniform on [-b, b] has b²/3."""
    return {
        "zeros": 0.0,
        "uniform": 0.05**2 / 3,
        "normal": 0.05**2,
        "small_normal": 0.02**2,
        "truncated_normal": 0.02**2 * TRUNCATED,
        "xavier_normal": 2 / (fan_in + fan_out),
        "xavier_uniform": 2 / (fan_in + fan_out),
        "kaiming_normal": 2 / fan_in,
        "kaiming_uniform": 2 / fan_in,
        "kaiming_normal_fan_out": 2 / fan_out,
        "kaiming_uniform_fan_out": 2 / fan_out,
        "lecun_normal": 1 / fan_in,
    }


SCHEMES = list(formulas(1, 1))
RECURRENT = {
    "lstm": (lambda: nn.LSTM(60, 80), 4),
    "gru": (lambda: nn.GRU(60, 80), 3),
    "rnn": (lambda: nn.RNN(60, 80), 1),
    "lstm_cell": (lambda: nn.LSTMCell(60, 80), 4),
    "gru_cell": (lambda: nn.GRUCell(60, 80), 3),
    "rnn_cell": (lambda: nn.RNNCell(60, 80), 1),
    "lstm_projected_both_ways": (lambda: nn.LSTM(60, 80, num_layers=2, bidirectional=True, proj_size=40), 4),
}


def assert_drawn(weights, variance):
    # Standard errors from the sample size: of a mean σ/√n, of a variance at most σ²·√(2/n) (normal; others less).
    weights, count = weights.detach().double(), weights.numel()
    assert abs(weights.mean().item()) <= 4 * math.sqrt(variance / count)
    assert abs(weights.square().mean().item() - variance) <= 4 * variance * math.sqrt(2 / count)


def test_every_scheme_is_checked():
    assert {*SCHEMES, "orthogonal"} == set(INITIALIZATIONS)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_mean_and_variance_are_the_formulas(scheme, kind):
    torch.manual_seed(0)
    make, fan_in, fan_out, _ = LAYERS[kind]
    layer = make()
    initialize_(layer, scheme, nn.ReLU())
    assert_drawn(layer.weight, formulas(fan_in, fan_out)[scheme])
    assert not layer.bias.any()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", RECURRENT)
def test_each_gate_is_a_matrix_of_its_own(kind, scheme):
    torch.manual_seed(0)
    make, gates = RECURRENT[kind]
    layer = make()
    initialize_(layer, scheme, nn.ReLU())
    for name, parameter in layer.named_parameters():
        if name.startswith("bias"):
            assert not parameter.any()
            continue
        for gate in parameter.chunk(1 if name.startswith("weight_hr") else gates):
            assert_drawn(gate, formulas(gate.shape[1], gate.shape[0])[scheme])


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("scheme", ["xavier_normal", "kaiming_uniform_fan_out"])
def test_queries_keys_and_values_are_matrices_of_their_own(scheme, separate):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(96, 4, kdim=64 if separate else None, add_bias_kv=True)
    bias_k = layer.bias_k.clone()
    initialize_(layer, scheme, nn.ReLU())
    parts = layer.in_proj_weight.chunk(3) if not separate else (layer.q_proj_weight, layer.k_proj_weight)
    for part in (*parts, layer.out_proj.weight):
        assert_drawn(part, formulas(part.shape[1], 96)[scheme])
    assert not layer.in_proj_bias.any()
    assert torch.equal(layer.bias_k, bias_k)


def test_orthogonal_works_in_16_bits():
    layer = nn.Linear(64, 32, dtype=torch.bfloat16)
    initialize_(layer, "orthogonal", nn.ReLU())
    # Rounded to 8 bits: each of 64 products of a row with itself is off by 2^-8 at the most.
    assert torch.allclose(layer.weight.double().square().sum(1), torch.ones(32, dtype=torch.float64), atol=2**-7)


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_plain_layers_get_the_numbers_that_torch_draws(mode):
    layer, expected = nn.Conv2d(8, 16, 3), torch.empty(16, 8, 3, 3)
    torch.manual_seed(0)
    initialize_(layer, VarianceScaling(math.sqrt(2), mode, "uniform"), nn.ReLU())
    torch.manual_seed(0)
    nn.init.kaiming_uniform_(expected, mode=mode, nonlinearity="relu")
    torch.testing.assert_close(layer.weight.detach(), expected)


@pytest.mark.parametrize(
    ("activation", "fan", "gain"),
    [
        (nn.ReLU(), "fan_in", 2),
        (nn.GELU(), "fan_in", 2),
        (nn.LeakyReLU(0.5), "fan_in", 2 / (1 + 0.25)),
        (nn.PReLU(init=0.5), "fan_in", 2 / (1 + 0.25)),
        (nn.RReLU(0.25, 0.75), "fan_in", 2 / (1 + 0.25)),
        (nn.SELU(), "fan_in", 1),
        (nn.Tanh(), "fan_average", 1),
        (nn.Sigmoid(), "fan_average", 1),
        (nn.Identity(), "fan_average", 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_scheme_follows_the_activation(activation, fan, gain):
    scheme = scheme_for_activation(activation)
    assert (scheme.mode, scheme.gain**2) == (fan, pytest.approx(gain))
    torch.manual_seed(0)
    weight = torch.empty(300, 200)
    scheme(weight)
    assert_drawn(weight, gain / {"fan_in": 200, "fan_average": 250}[fan])


class Unseen(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs):
        return self.layers(inputs)


def test_auto_draws_by_the_activation_that_follows():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 200), nn.SELU(), Unseen(nn.Linear(200, 300)), nn.Linear(300, 200)
    )
    initialize_(network, "auto", nn.LeakyReLU(0.5))
    assert_drawn(network[0].weight, 2 / 200)
    assert_drawn(network[2].weight, 1 / 300)
    assert_drawn(network[4].layers[0].weight, 1.6 / 200)  # by the argument, because no activation is seen
    assert_drawn(network[5].weight, 2 / 500)


@pytest.mark.parametrize("kind", RECURRENT)
def test_auto_makes_recurrent_matrices_orthogonal_and_opens_the_forget_gate(kind):
    torch.manual_seed(0)
    make, gates = RECURRENT[kind]
    layer = make()
    initialize_(nn.Sequential(layer), "auto", nn.ReLU())
    forget = torch.tensor([0.0, 1.0, 0.0, 0.0] if gates == 4 else [0.0] * gates)
    parameters = dict(layer.named_parameters())
    for name, parameter in parameters.items():
        if name.startswith("weight_ih"):
            assert_drawn(parameter, 2 / (80 + parameter.shape[1]))
        elif name.startswith("weight_hh"):
            assert all(is_orthonormal(gate) for gate in parameter.chunk(gates))
        elif name.startswith("weight_hr"):
            assert is_orthonormal(parameter)
        elif name.startswith("bias_ih"):
            both = parameter + parameters[name.replace("ih", "hh")]  # torch adds them
            assert torch.equal(both, forget.repeat_interleave(80))


def test_embeddings_are_left_alone_but_in_the_guide_for_transformers():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(200, 100, padding_idx=3), nn.Linear(100, 50))
    before = network[0].weight.clone()
    initialize_(network, "auto", nn.GELU())
    assert torch.equal(network[0].weight, before)
    initialize_(network, "small_normal", nn.GELU())
    assert not network[0].weight[3].any()
    assert_drawn(network[0].weight[4:], 0.02**2)


def test_norms_and_parameters_of_ones_own_keep_what_they_have():
    network = nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Bilinear(4, 4, 4))
    network.register_parameter("scale", nn.Parameter(torch.full((4, 4), 7.0)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    initialize_(network, "normal", nn.ReLU())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_default_touches_nothing():
    layer = nn.Linear(3, 3)
    before = layer.weight.clone()
    initialize_(layer, "default", nn.ReLU())
    assert torch.equal(layer.weight, before)


def test_function_and_import_path_fill_the_weights():
    layers = [nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)]
    initialize_(layers[0], nn.init.ones_, nn.ReLU())
    initialize_(layers[1], "torch.nn.init.ones_", nn.ReLU())
    assert all((layer.weight == 1).all() for layer in layers)


def test_layers_without_inputs_are_no_obstacle():
    layer = nn.Linear(2, 3)
    layer.weight = nn.Parameter(torch.empty(3, 0))
    initialize_(layer, "kaiming_normal", nn.ReLU())
    assert not layer.bias.any()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: weight_norm(nn.Linear(2, 2)), "weight of 0 is computed from others; initialize it before"),
        (lambda: nn.LazyLinear(2), "weight of 0 has none yet; run a batch through it first"),
    ],
)
def test_weights_that_can_not_be_filled_are_refused(layer, message):
    with pytest.raises(SettingError, match=message):
        initialize_(nn.Sequential(layer()), "auto", nn.ReLU())


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(SettingError, match="did you mean 'kaiming_normal'"):
        initialize_(nn.Linear(2, 2), "kaiming_norml", nn.ReLU())


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("os.getcwd", r"init must fill a tensor in place, but getcwd\(weight\) fails: .* takes no arguments"),
        (torch.sin, r"init must fill a tensor in place, but sin\(weight\) returns another one"),
        (5, "init must be a name or a function that fills a tensor in place, but is 5"),
        (None, "init must be a name or a function .* but is None"),
    ],
)
def test_what_fills_no_tensor_is_refused(scheme, message):
    with pytest.raises(SettingError, match=message):
        initialize_(nn.Linear(2, 2), scheme, nn.ReLU())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gain": -1.0}, r"gain must be in \[0, ∞\), but is -1.0"),
        ({"mode": "fan_on"}, "mode must be one of fan_in, fan_out, fan_average, but is 'fan_on'"),
        ({"distribution": "cauchy"}, "distribution must be one of normal, uniform, but is 'cauchy'"),
    ],
)
def test_settings_of_variance_scaling_are_checked(settings, message):
    with pytest.raises(SettingError, match=message):
        VarianceScaling(**settings)


def residual_block():
    return nn.ModuleDict({"conv": nn.Linear(4, 4), "norm1": nn.BatchNorm1d(4), "norm2": nn.LayerNorm(4)})


def test_zero_gamma_is_set_by_globs_and_by_layers():
    network = nn.ModuleList([residual_block() for _ in range(3)])
    assert zero_residual_gamma_(network, ["0.*2", network[2]["norm2"]]) == ["0.norm2", "2.norm2"]
    zeros = [name for name, value in network.named_parameters() if name.endswith("weight") and not value.any()]
    assert zeros == ["0.norm2.weight", "2.norm2.weight"]


@pytest.mark.parametrize("include", ["*.norm3", "*.conv", [nn.BatchNorm1d(4)]])
def test_zero_gamma_that_meets_no_norm_is_refused(include):
    with pytest.raises(SettingError, match=r"normalization layers with a γ \(0.norm1, 0.norm2\)"):
        zero_residual_gamma_(nn.ModuleList([residual_block()]), include)


def test_all_matrices_of_an_attention_are_xaviers():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(256, 4)
    initialize_(attention, "auto", nn.ReLU())
    variance = 2 / (256 + 256)
    for weight in (*attention.in_proj_weight.chunk(3), attention.out_proj.weight):
        assert abs(weight.var().item() - variance) <= 4 * variance * math.sqrt(2 / weight.numel())


@pytest.mark.parametrize(
    ("fill", "shape", "message"),
    [
        (INITIALIZATIONS["kaiming_normal"], (5,), r"two dimensions to have a fan_in and a fan_out, but has .* \(5,\)"),
        (VarianceScaling(), (), r"but has the shape \(\)"),
        (INITIALIZATIONS["orthogonal"], (5,), r"two dimensions to be orthogonal, but has the shape \(5,\)"),
    ],
)
def test_a_vector_has_no_fans(fill, shape, message):
    with pytest.raises(SettingError, match=message):
        fill(torch.zeros(shape))


def test_a_vector_with_fans_that_are_told_and_a_weight_without_elements_are_filled():
    vector = torch.zeros(1000)
    torch.manual_seed(0)
    VarianceScaling(2.0)(vector, fan_in=16, fan_out=1)
    assert vector.std().item() == pytest.approx(0.5, rel=0.1)
    VarianceScaling()(torch.zeros(3, 0))
