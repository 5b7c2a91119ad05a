"""What every layer of the family has to do, and what each drops."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_reg.nn import (
    DropBlock,
    Dropout,
    GaussianDropout,
    GaussianNoise,
    SpatialDropout,
    StochasticDepth,
    VariationalDropout,
    drop_connected,
    linear_rates,
)
from lightning_reg.settings import SettingError

P = 0.3
LAYERS = {
    "dropout": (Dropout, [(40,), (8, 16), (8, 16, 5), (8, 16, 5, 4)]),
    "spatial": (SpatialDropout, [(8, 16), (8, 16, 5), (8, 16, 5, 4), (8, 4, 2, 3, 3)]),
    "variational": (VariationalDropout, [(8, 5, 16), (8, 5, 4, 4)]),
    "row": (StochasticDepth, [(32,), (32, 4), (32, 4, 3, 3)]),
    "batch": (lambda p: StochasticDepth(p, mode="batch"), [(4,), (4, 3, 3)]),
    "gaussian": (GaussianDropout, [(8, 16), (8, 16, 5, 4)]),
    "noise": (GaussianNoise, [(8, 16), (8, 16, 5, 4)]),
}
CASES = [pytest.param(make, shape, id=f"{name}-{shape}") for name, (make, shapes) in LAYERS.items() for shape in shapes]
MAKERS = [pytest.param(make, shapes[-1], id=name) for name, (make, shapes) in LAYERS.items()]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_evaluation_and_strength_zero_are_the_identity_to_the_bit(make, shape):
    inputs = torch.randn(shape)
    assert make(P).eval()(inputs) is inputs
    assert make(0.0).train()(inputs) is inputs
    assert not torch.equal(make(0.9).train()(inputs), inputs)


@pytest.mark.parametrize(("make", "shape"), MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtype_is_kept(make, shape, dtype):
    assert make(P)(torch.ones(shape, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(("make", "shape"), [case for case in MAKERS if len(case.values[1]) == 4])
def test_channels_last_is_kept(make, shape):
    inputs = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    assert make(P)(inputs).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("make", "shape"), MAKERS)
def test_autocast_leaves_what_comes_in(make, shape):
    with torch.autocast("cpu", torch.bfloat16):
        assert make(P)(torch.ones(shape)).dtype == torch.float32
        assert make(P)(torch.ones(shape, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(("make", "shape"), MAKERS)
def test_compiles_without_a_graph_break(make, shape):
    """In compiled code the global stream is another, so what is compared is what survives: it isn't random."""
    torch._dynamo.reset()
    layer = make(P)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    out = compiled(torch.ones(shape))
    assert out.shape == shape
    if not isinstance(layer, (GaussianDropout, GaussianNoise)):
        assert torch.isin(out, torch.tensor([0.0, 1 / (1 - P)])).all()
    torch._dynamo.reset()


@pytest.mark.parametrize(("make", "shape"), MAKERS)
def test_gradient_is_that_of_the_same_draw(make, shape):
    """The layer is linear in its inputs (the noise adds to them), and its draw doesn't depend on them."""
    inputs = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    layer = make(P)

    def drawn(values):
        torch.manual_seed(1)
        return layer(values)

    assert torch.autograd.gradcheck(drawn, inputs)


def assert_within(values, expected, variance, count):
    """Within four standard errors of a mean."""
    assert abs(values.double().mean().item() - expected) <= 4 * math.sqrt(variance / count)


@pytest.mark.parametrize(
    ("make", "shape", "independent"),
    [
        (Dropout, (100, 1000), 100_000),
        (SpatialDropout, (100, 1000, 2), 100_000),
        (VariationalDropout, (100, 2, 1000), 100_000),
        (StochasticDepth, (100_000, 2), 100_000),
    ],
)
def test_what_is_drawn_by_itself_is_dropped_with_probability_p_and_the_expectation_is_kept(make, shape, independent):
    out = make(P)(torch.ones(shape))
    assert_within(out == 0, P, P * (1 - P), independent)
    assert_within(out, 1.0, P / (1 - P), independent)


def test_gaussian_dropout_has_the_mean_and_the_variance_of_dropouts():
    out = GaussianDropout(P)(torch.full((100_000,), 2.0))
    variance = 4 * P / (1 - P)
    assert_within(out, 2.0, variance, 100_000)
    assert abs(out.var().item() - variance) <= 4 * variance * math.sqrt(2 / 100_000)


def test_gaussian_noise_has_the_mean_and_the_variance_asked_for():
    out = GaussianNoise(0.5)(torch.full((100_000,), 2.0))
    assert_within(out, 2.0, 0.25, 100_000)
    assert abs(out.var().item() - 0.25) <= 4 * 0.25 * math.sqrt(2 / 100_000)


def test_masks_are_the_same_along_what_is_dropped_together():
    assert not SpatialDropout(P)(torch.ones(50, 20, 4, 4)).flatten(2).std(2).any()
    assert not VariationalDropout(P)(torch.ones(50, 7, 20)).std(1).any()
    assert not VariationalDropout(P, time_dim=0)(torch.ones(7, 50, 20)).std(0).any()
    assert not StochasticDepth(P)(torch.ones(50, 20, 4)).flatten(1).std(1).any()
    assert len(StochasticDepth(P, mode="batch")(torch.ones(50, 20)).unique()) == 1


@pytest.mark.parametrize(
    ("layer", "shape", "dim"),
    [
        (SpatialDropout(P), (200, 1, 3, 3), 0),
        (SpatialDropout(P), (1, 200, 3, 3), 1),
        (VariationalDropout(P), (200, 4, 1), 0),
        (VariationalDropout(P), (1, 4, 200), 2),
        (StochasticDepth(P), (200, 3), 0),
    ],
)
def test_masks_differ_along_what_is_dropped_by_itself(layer, shape, dim):
    assert layer(torch.ones(shape)).std(dim).min() > 0


def test_whole_batches_are_dropped_with_probability_p():
    layer = StochasticDepth(P, mode="batch")
    draws = torch.stack([layer(torch.ones(2)) for _ in range(2000)])
    assert_within(draws[:, 0] == 0, P, P * (1 - P), 2000)


def test_rates_rise_linearly_with_depth():
    assert linear_rates(0.5, 5) == [0.1, 0.2, 0.3, 0.4, 0.5]


CONNECTED = [
    (nn.Linear(6, 4), (3, 6), F.linear),
    (nn.Conv1d(6, 4, 3, padding=1), (3, 6, 5), F.conv1d),
    (nn.Conv2d(6, 4, 3, padding=1, groups=2), (3, 6, 5, 5), F.conv2d),
    (nn.Conv3d(6, 4, 3, padding=1), (3, 6, 4, 4, 4), F.conv3d),
]


@pytest.mark.parametrize(("plain", "shape", "function"), CONNECTED, ids=lambda value: type(value).__name__)
def test_drop_connect_uses_masked_weights_and_has_their_gradient(plain, shape, function):
    layer = drop_connected(plain.double(), 0.4)
    inputs = torch.randn(shape, dtype=torch.float64)
    torch.manual_seed(3)
    out = layer(inputs)
    torch.manual_seed(3)
    keep = torch.empty_like(layer.weight).bernoulli_(0.6)
    weight = layer.weight.detach().clone().requires_grad_()
    more = () if function is F.linear else (layer.stride, layer.padding, layer.dilation, layer.groups)
    expected = function(inputs, weight * keep / 0.6, layer.bias, *more)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    expected.square().sum().backward()
    out.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=0, atol=1e-10)


def test_drop_connect_drops_weights_with_probability_p_and_keeps_their_expectation():
    layer = drop_connected(nn.Linear(300, 300, bias=False), P)
    nn.init.ones_(layer.weight)
    used = layer(torch.eye(300))
    assert_within(used == 0, P, P * (1 - P), 90_000)
    assert_within(used, 1.0, P / (1 - P), 90_000)


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_drop_connect_is_the_plain_layer_in_evaluation_and_at_zero(p):
    plain = nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1)
    inputs = torch.randn(2, 3, 6, 6)
    expected = plain(inputs)
    keys = list(plain.state_dict())
    layer = drop_connected(plain, p)
    assert torch.equal(layer.train(p == 0)(inputs), expected)
    assert list(layer.state_dict()) == keys


def test_drop_connect_compiles_without_a_graph_break():
    torch._dynamo.reset()
    layer = drop_connected(nn.Linear(50, 50, bias=False), 0.5)
    nn.init.ones_(layer.weight)
    used = torch.compile(layer, backend="aot_eager", fullgraph=True)(torch.eye(50))
    assert sorted(used.unique().tolist()) == [0.0, 2.0]
    torch._dynamo.reset()


@pytest.mark.parametrize("make", [Dropout, SpatialDropout, VariationalDropout, StochasticDepth, GaussianDropout])
@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_probability_out_of_range_is_refused(make, p):
    with pytest.raises(SettingError, match=r"p must be in \[0, 1[\])], but is"):
        make(p)


def test_gaussian_dropout_has_no_rate_of_one():
    with pytest.raises(SettingError, match=r"p must be in \[0, 1\), but is 1.0"):
        GaussianDropout(1.0)


@pytest.mark.parametrize("make", [Dropout, SpatialDropout, VariationalDropout, StochasticDepth, DropBlock])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_rate_of_one_makes_zeros_whatever_the_inputs_are(make, dtype):
    shape = (2, 3, 4) if make is VariationalDropout else (2, 3, 4, 4)
    inputs = torch.randn(shape).to(dtype)
    inputs[0, 0, 0] = float("inf")
    inputs[1, 1, 1] = float("nan")
    inputs.requires_grad_()
    outputs = make(1.0)(inputs)
    assert torch.equal(outputs, torch.zeros_like(outputs))
    assert outputs.dtype == dtype
    (gradient,) = torch.autograd.grad(outputs.sum(), inputs)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_drop_connect_at_a_rate_of_one_uses_no_weight():
    layer = drop_connected(nn.Linear(3, 2), 1.0)
    assert torch.equal(layer(torch.randn(4, 3)), layer.bias.expand(4, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: SpatialDropout(P)(torch.ones(3)),
            r"SpatialDropout must have the shape \(N, C, .*, but have \(3,\)",
        ),
        (lambda: VariationalDropout(P)(torch.ones(3, 2)), r"shape \(N, T, F\).*, but have \(3, 2\)"),
        (lambda: VariationalDropout(P, time_dim=3)(torch.ones(3, 2, 1)), r"time_dim must be a dimension.*but is 3"),
        (lambda: StochasticDepth(P)(torch.ones(())), r"StochasticDepth must have the shape \(N, ...\), but have \(\)"),
        (lambda: StochasticDepth(P, mode="sample"), "mode must be one of row, batch, but is 'sample'"),
        (lambda: GaussianNoise(-1.0), r"std must be in \[0, ∞\), but is -1.0"),
        (lambda: drop_connected(nn.BatchNorm1d(3), P), "layer must be one of Linear, .* but is a BatchNorm1d"),
        (lambda: drop_connected(nn.Linear(3, 3), 1.1), r"p must be in \[0, 1\], but is 1.1"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(SettingError, match=message):
        call()
