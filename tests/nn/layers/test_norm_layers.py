import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import register_parametrization
from torch.optim.swa_utils import update_bn

from lightning_reg.nn import (
    NORMS,
    ChannelsFirstLayerNorm,
    ChannelsFirstRMSNorm,
    FilterResponseNorm,
    GhostBatchNorm,
    StandardizedWeight,
    convolutional_network,
    dense_network,
    make_norm,
)
from lightning_reg.optim import is_normalization, weight_decay_groups
from lightning_reg.settings import SettingError

SHAPES = {0: (10, 16), 1: (10, 16, 6), 2: (10, 16, 3, 4), 3: (10, 16, 2, 3, 2)}
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
OURS = {
    "layer": ChannelsFirstLayerNorm,
    "rms": ChannelsFirstRMSNorm,
    "ghost": lambda channels: GhostBatchNorm(channels, ghost_batch_size=4),
    "filter_response": FilterResponseNorm,
    "filter_response_learned": lambda channels: FilterResponseNorm(channels, learn_eps=True, threshold=False),
}
# torch's own InstanceNorm doesn't keep it.
KEEPING_CHANNELS_LAST = [name for name in NORMS if name not in ("none", "instance")]


def random_inputs(dims=2, dtype=torch.float32):
    return torch.randn(SHAPES[dims], generator=torch.Generator().manual_seed(0), dtype=dtype)


def scrambled(layer):
    """With parameters that differ from one another and from 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return layer


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", KEEPING_CHANNELS_LAST)
def test_memory_format_stays(norm, dims):
    layer = make_norm(norm, 16, spatial_dims=dims)
    contiguous = random_inputs(dims)
    last = contiguous.to(memory_format=LAST[dims])
    assert layer(contiguous).is_contiguous()
    assert layer(last).is_contiguous(memory_format=LAST[dims])
    torch.testing.assert_close(layer(last), layer(contiguous))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", OURS)
def test_dtype_stays(name, dtype, training):
    layer = OURS[name](16).to(dtype).train(training)
    assert layer(random_inputs(dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("name", OURS)
def test_device_stays(name):
    layer = OURS[name](16).to("meta")
    assert layer(random_inputs().to("meta")).device.type == "meta"


@pytest.mark.parametrize("name", OURS)
def test_autocast_gives_the_precision_that_comes_in(name):
    layer = scrambled(OURS[name](16))
    inputs = random_inputs().bfloat16()
    expected = copy.deepcopy(layer)(inputs.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = layer(inputs)
    assert outputs.dtype == torch.bfloat16
    # Computed in float32 and rounded to bfloat16: half a unit in the last of its 8 places.
    torch.testing.assert_close(outputs.float(), expected, rtol=2**-8, atol=1e-6)
    outputs.float().square().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in layer.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OURS)
def test_compiled_is_eager_without_graph_breaks(name, training):
    torch._dynamo.reset()
    eager = scrambled(OURS[name](16)).train(training)
    compiled_layer = copy.deepcopy(eager)
    compiled = torch.compile(compiled_layer, backend="aot_eager", fullgraph=True)
    results = []
    for layer in (eager, compiled):
        inputs = random_inputs().requires_grad_()
        outputs = layer(inputs)
        outputs.square().sum().backward()
        results.append((outputs, inputs.grad))
    torch._dynamo.reset()
    torch.testing.assert_close(*results)
    for ours, theirs in zip(compiled_layer.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(dict(compiled_layer.named_buffers()), dict(eager.named_buffers()))


@pytest.mark.parametrize("name", OURS)
def test_weight_decay_spares_them(name):
    layer = OURS[name](16)
    assert is_normalization(layer)
    assert [group["name"] for group in weight_decay_groups(layer)] == ["no_decay"]


@pytest.mark.parametrize("norm", ["ghost_batch", "filter_response"])
def test_bias_before_them_is_left_out(norm):
    assert convolutional_network((1, 4, 4), 2, channels=[8], norm=norm)[0].bias is None


def test_dense_networks_take_ghost_batches():
    network = dense_network((4,), 2, hidden_sizes=[8], norm="ghost_batch")
    assert network[1].bias is None
    assert network(torch.randn(5, 4)).shape == (5, 2)


def test_filter_response_without_positions_is_refused():
    with pytest.raises(SettingError, match=r"'filter_response' needs positions.*allowed are none, batch"):
        make_norm("filter_response", 8)


@pytest.mark.parametrize("dims", SHAPES)
def test_each_ghost_batch_is_normalized_by_its_own_statistics(dims):
    layer = scrambled(GhostBatchNorm(16, ghost_batch_size=4, momentum=0.3, eps=1e-3).double())
    inputs = random_inputs(dims, torch.float64)
    view = (1, 16, *[1] * dims)
    mean, variance = torch.zeros(16, dtype=torch.float64), torch.ones(16, dtype=torch.float64)
    expected = []
    for part in (inputs[:4], inputs[4:7], inputs[7:]):
        values = part.movedim(1, 0).flatten(1)
        normalized = (part - values.mean(1).view(view)) / (values.var(1, correction=0) + 1e-3).sqrt().view(view)
        expected.append(layer.weight.view(view) * normalized + layer.bias.view(view))
        mean = 0.7 * mean + 0.3 * values.mean(1)
        variance = 0.7 * variance + 0.3 * values.var(1, correction=1)
    torch.testing.assert_close(layer(inputs), torch.cat(expected), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_var, variance, rtol=1e-12, atol=1e-12)
    assert layer.num_batches_tracked == 3
    evaluated = F.batch_norm(inputs, mean, variance, layer.weight, layer.bias, eps=1e-3)
    torch.testing.assert_close(layer.eval()(inputs), evaluated, rtol=1e-12, atol=1e-12)


def test_one_ghost_batch_is_batch_norm():
    ghost, batch = GhostBatchNorm(16, ghost_batch_size=10), nn.BatchNorm2d(16)
    ghost.load_state_dict(batch.state_dict())
    assert torch.equal(ghost(random_inputs()), batch(random_inputs()))
    torch.testing.assert_close(ghost.state_dict(), batch.state_dict(), rtol=0, atol=0)


def test_gradients_stay_in_their_ghost_batch():
    inputs = random_inputs().requires_grad_()
    GhostBatchNorm(16, ghost_batch_size=5)(inputs)[:5].square().sum().backward()
    assert inputs.grad[:5].any()
    assert not inputs.grad[5:].any()


def test_the_average_over_ghost_batches_is_what_update_bn_leaves():
    model = nn.Sequential(GhostBatchNorm(16, ghost_batch_size=5).double())
    inputs = random_inputs(dtype=torch.float64)
    update_bn([inputs, inputs + 1], model)
    means = [part.mean((0, 2, 3)) for part in (inputs[:5], inputs[5:], inputs[:5] + 1, inputs[5:] + 1)]
    torch.testing.assert_close(model[0].running_mean, torch.stack(means).mean(0), rtol=1e-12, atol=1e-12)


def test_evaluation_without_running_statistics_is_of_the_batch():
    layer = GhostBatchNorm(16, ghost_batch_size=2, track_running_stats=False, affine=False).eval()
    expected = F.batch_norm(random_inputs(), None, None, training=True)
    assert torch.equal(layer(random_inputs()), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (4, 3, 0, 2)])
def test_an_empty_batch_is_what_it_is_to_batch_norm(training, shape):
    ghost, batch = (make(3).train(training) for make in (GhostBatchNorm, nn.BatchNorm2d))
    assert ghost(torch.zeros(shape)).shape == batch(torch.zeros(shape)).shape == shape
    torch.testing.assert_close(ghost.state_dict(), batch.state_dict())


def test_ghosts_can_be_normalized_without_a_shift():
    layer, inputs = GhostBatchNorm(16, ghost_batch_size=5, bias=False), torch.randn(10, 16)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    torch.testing.assert_close(layer(inputs), GhostBatchNorm(16, ghost_batch_size=5)(inputs))


def test_filter_response_norm_depends_on_no_other_sample():
    layer = scrambled(FilterResponseNorm(16))
    inputs = random_inputs()
    torch.testing.assert_close(layer(inputs)[3:4], layer.eval()(inputs[3:4]))


def test_filter_response_norm_begins_as_one_with_a_relu_and_learns_its_corner():
    inputs = random_inputs()
    layer, plain = FilterResponseNorm(16), FilterResponseNorm(16, threshold=False)
    assert torch.equal(layer(inputs), plain(inputs).relu())
    layer(inputs).sum().backward()
    # Where an output is below the threshold, it is the threshold.
    torch.testing.assert_close(layer.threshold.grad, (plain(inputs) < 0).sum((0, 2, 3)).float())
    assert "threshold" not in dict(plain.named_parameters())


@pytest.mark.parametrize("share", [0.5, -0.5])
def test_learned_eps_is_added_in_its_absolute_value(share):
    layer = FilterResponseNorm(16, eps=0.25, learn_eps=True, threshold=False)
    assert layer.extra_eps.item() == pytest.approx(1e-4)
    with torch.no_grad():
        layer.extra_eps.fill_(share)
    inputs = random_inputs()
    torch.testing.assert_close(layer(inputs), FilterResponseNorm(16, eps=0.75, threshold=False)(inputs))


def test_learned_eps_keeps_the_size_of_single_positions():
    inputs = torch.full((1, 2, 1, 1), 0.01)
    layer = FilterResponseNorm(2, learn_eps=True, threshold=False)
    # x² = ε_l = 1e-4, and ε is 1e-6 more.
    torch.testing.assert_close(layer(inputs), torch.full((1, 2, 1, 1), (1 / 2.01) ** 0.5))


@pytest.mark.parametrize(
    ("make", "dim"),
    [
        (lambda: nn.Linear(6, 4), 0),
        (lambda: nn.Conv2d(6, 4, 3, groups=2), 0),
        (lambda: nn.ConvTranspose2d(6, 4, 3), 1),
    ],
)
def test_a_standardized_layer_has_units_of_mean_zero_and_variance_one(make, dim):
    layer = make().double()
    register_parametrization(layer, "weight", StandardizedWeight(dim=dim, eps=0.0))
    units = layer.weight.movedim(dim, 0).flatten(1)
    # Sums of at most 54 numbers of the order of 1 in float64.
    torch.testing.assert_close(units.mean(1), torch.zeros_like(units[:, 0]), rtol=0, atol=1e-12)
    torch.testing.assert_close(units.var(1, correction=0), torch.ones_like(units[:, 0]), rtol=0, atol=1e-12)
    layer.weight.pow(3).sum().backward()
    assert layer.parametrizations.weight.original.grad.any()


def test_a_weight_that_is_assigned_is_used_standardized():
    layer = register_parametrization(nn.Linear(6, 4), "weight", StandardizedWeight())
    assigned = torch.randn(4, 6)
    layer.weight = assigned
    assert torch.equal(layer.parametrizations.weight.original, assigned)
    torch.testing.assert_close(layer.weight, F.layer_norm(assigned, (6,)))


def test_a_standardized_convolution_compiles_without_graph_breaks():
    torch._dynamo.reset()
    layer = register_parametrization(nn.Conv2d(16, 4, 3), "weight", StandardizedWeight())
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(random_inputs()), layer(random_inputs()))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GhostBatchNorm(0), "num_features must be a whole number of at least 1, but is 0"),
        (lambda: GhostBatchNorm(8, ghost_batch_size=0), "ghost_batch_size must be a whole number of at least 1"),
        (lambda: GhostBatchNorm(8, eps=0.0), r"eps must be in \(0, ∞\), but is 0.0"),
        (lambda: GhostBatchNorm(8, momentum=2.0), r"momentum must be in \[0, 1\], but is 2.0"),
        (lambda: FilterResponseNorm(0), "num_channels must be a whole number of at least 1, but is 0"),
        (lambda: FilterResponseNorm(8, eps=-1.0), r"eps must be in \(0, ∞\), but is -1.0"),
        (lambda: ChannelsFirstLayerNorm(0), "num_channels must be a whole number of at least 1, but is 0"),
        (lambda: ChannelsFirstLayerNorm(8, eps=-1.0), r"eps must be in \[0, ∞\), but is -1.0"),
        (lambda: ChannelsFirstRMSNorm(0), "num_channels must be a whole number of at least 1, but is 0"),
        (lambda: ChannelsFirstRMSNorm(8, eps=-1.0), r"eps must be in \[0, ∞\), but is -1.0"),
        (lambda: StandardizedWeight(dim=2), "dim must be 0 or 1, but is 2"),
        (lambda: StandardizedWeight(groups=0), "groups must be a whole number of at least 1, but is 0"),
        (lambda: StandardizedWeight(eps=-1.0), r"eps must be in \[0, ∞\), but is -1.0"),
        (
            lambda: register_parametrization(nn.Conv2d(4, 4, 1, groups=4), "weight", StandardizedWeight()),
            r"at least two elements per output unit, but has the shape \(4, 1, 1, 1\)",
        ),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (GhostBatchNorm(8), (8,), r"inputs must have the shape \(N, C, \.\.\.\), but have \(8,\)"),
        (GhostBatchNorm(8), (2, 4, 8), r"inputs must have the shape \(N, 8, \.\.\.\), but have \(2, 4, 8\)"),
        (GhostBatchNorm(8).eval(), (8,), r"inputs must have the shape \(N, 8, \.\.\.\), but have \(8,\)"),
        (GhostBatchNorm(8), (1, 8, 1), r"more than one value per channel in training, but have the shape \(1, 8, 1\)"),
        (FilterResponseNorm(8), (2, 8), r"inputs must have the shape \(N, 8, L, \.\.\.\), but have \(2, 8\)"),
        (FilterResponseNorm(8), (2, 4, 8), r"inputs must have the shape \(N, 8, L, \.\.\.\), but have \(2, 4, 8\)"),
        (FilterResponseNorm(8), (2, 8, 1, 1), r"one position where learn_eps is False, .* shape \(2, 8, 1, 1\)"),
        (ChannelsFirstLayerNorm(8), (8,), r"inputs must have the shape \(N, 8, \.\.\.\), but have \(8,\)"),
        (ChannelsFirstRMSNorm(8), (8,), r"inputs must have the shape \(N, 8, \.\.\.\), but have \(8,\)"),
    ],
)
def test_bad_inputs_are_refused(layer, shape, message):
    with pytest.raises(SettingError, match=message):
        layer(torch.ones(shape))
