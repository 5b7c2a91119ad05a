import functools
import math

import pytest
import torch
from torch import nn

from lightning_reg.nn import (
    ConcreteDropout,
    DropBlock2d,
    ResidualBlock,
    ShakeDrop,
    StochasticDepth,
    convolutional_network,
    dense_network,
    recurrent_network,
    transformer_network,
)
from lightning_reg.nn.layers.drop_connect import DropConnect
from lightning_reg.nn.networks.sequences import OverTime
from lightning_reg.settings import SettingError


def kinds(network):
    return [type(layer).__name__ for layer in network]


def test_order_is_weights_norm_activation_dropout():
    network = dense_network((4,), 2, hidden_sizes=[8], norm="batch", drop_prob=0.5)
    assert kinds(network) == ["Flatten", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]


def test_nothing_is_left_of_parts_that_are_off():
    assert kinds(dense_network((4,), 2, hidden_sizes=[8])) == ["Flatten", "Linear", "ReLU", "Linear"]


@pytest.mark.parametrize(("norm", "has_bias"), [("none", True), ("batch", False), ("layer", False), ("rms", True)])
def test_bias_is_left_out_only_where_the_norm_has_a_shift(norm, has_bias):
    assert (dense_network((4,), 2, hidden_sizes=[8], norm=norm)[1].bias is not None) is has_bias
    assert (convolutional_network((1, 4, 4), 2, channels=[8], norm=norm)[0].bias is not None) is has_bias


def test_no_hidden_layer_makes_it_linear():
    assert kinds(dense_network((2, 3), 4, hidden_sizes=[])) == ["Flatten", "Linear"]


@pytest.mark.parametrize("size", [8, 9, 32])
def test_images_of_any_size_are_classified(size):
    network = convolutional_network((3, size, size), 5, channels=[4, 8, 8], drop_prob=0.1, head_drop_prob=0.1)
    assert network(torch.randn(2, 3, size, size)).shape == (2, 5)


def test_dropout_stands_once_a_stage_and_before_the_head():
    network = convolutional_network((1, 8, 8), 2, channels=[4, 8], drop_prob=0.1, head_drop_prob=0.2)
    assert kinds(network).count("SpatialDropout") == 2
    assert kinds(network)[-2:] == ["Dropout", "Linear"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: convolutional_network((1, 2, 2), 2, channels=[4, 4, 4]), "3 stages, which halve the image 2 times"),
        (lambda: convolutional_network((8,), 2, channels=[4]), r"input_shape must be \(channels, height, width\)"),
        (lambda: convolutional_network((1, 8, 8), 2, channels=[]), "channels must name at least one stage"),
        (lambda: dense_network((8,), 2, hidden_sizes=[0]), "each of hidden_sizes must be a whole number"),
    ],
)
def test_impossible_shapes_are_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResidualBlock(5), "branch must be a module .*, but is 5"),
        (lambda: ResidualBlock(nn.Tanh(), shortcut="none"), "shortcut must be a module .*, but is 'none'"),
        (lambda: OverTime(None), "layer must be a module .*, but is None"),
    ],
)
def test_what_is_no_layer_is_refused_where_it_is_given(make, message):
    with pytest.raises(SettingError, match=message):
        make()


def test_compiles_without_graph_breaks():
    network = convolutional_network((1, 8, 8), 3, channels=[4], norm="layer", drop_prob=0.2)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert compiled(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    torch._dynamo.reset()


def test_any_callable_makes_the_norm():
    network = dense_network((4,), 2, hidden_sizes=[8], norm=nn.LayerNorm)
    assert kinds(network)[2] == "LayerNorm"


@pytest.mark.parametrize(("dropout", "kind"), [("drop_connect", DropConnect), ("concrete", ConcreteDropout)])
def test_dropout_of_weights_or_inputs_belongs_to_every_layer_that_follows_hidden_units(dropout, kind):
    dense = dense_network((8,), 3, hidden_sizes=[6, 5], dropout=dropout, drop_prob=0.2)
    assert [isinstance(layer, kind) for layer in dense if list(layer.parameters())] == [False, True, True]
    images = convolutional_network((1, 8, 8), 3, channels=[4, 5], norm="none", dropout=dropout, drop_prob=0.2)
    dropping = [isinstance(layer, kind) for layer in images if list(layer.parameters())]
    assert dropping == [False, False, True, False, True]


def test_dropout_at_rate_zero_is_no_layer_at_all_but_a_rate_cannot_be_learned_from_there():
    plain = dense_network((8,), 3, hidden_sizes=[6, 5], dropout="drop_connect")
    assert not any(isinstance(layer, DropConnect) for layer in plain.modules())
    with pytest.raises(SettingError, match=r"drop_prob must be in \(0, 1\) with dropout 'concrete'"):
        dense_network((8,), 3, hidden_sizes=[6, 5], dropout="concrete")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dense_network((8,), 3, hidden_sizes=5), "hidden_sizes must be a list, but is 5"),
        (lambda: dense_network(8, 3, hidden_sizes=[5]), "input_shape must be a list, but is 8"),
        (lambda: dense_network((8,), 0, hidden_sizes=[5]), "num_outputs must be a whole number of at least 1"),
        (lambda: dense_network((8,), 3, hidden_sizes=[5], embed_dim=math.nan), "embed_dim must be a whole number"),
        (lambda: convolutional_network((1, 8, 8), 3, channels=5), "channels must be a list, but is 5"),
        (lambda: recurrent_network(8, 3), "input_shape must be a list, but is 8"),
        (lambda: transformer_network(8, 3), "input_shape must be a list, but is 8"),
    ],
)
def test_sizes_that_make_no_network_are_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()


def test_block_dropout_needs_positions():
    with pytest.raises(SettingError, match=r"'drop_block' needs positions to drop.*allowed are standard, spatial"):
        dense_network((8,), 3, hidden_sizes=[6], dropout="drop_block", drop_prob=0.2)
    network = convolutional_network((1, 8, 8), 3, channels=[4], dropout="drop_block", drop_prob=0.2)
    assert any(isinstance(layer, DropBlock2d) for layer in network)


def test_groups_that_do_not_divide_the_features_are_refused():
    with pytest.raises(SettingError, match=r"norm must make a module, but .* fails: num_channels"):
        dense_network((8,), 3, hidden_sizes=[12], norm=functools.partial(nn.GroupNorm, 5))


def test_concrete_dropout_leaves_initialization_as_it_is():
    """A layer whose inputs are dropped is still followed by what comes next: by nothing, for the head."""
    heads = []
    for dropout, drop_prob in (("standard", 0.0), ("concrete", 0.1)):
        torch.manual_seed(0)
        heads.append(dense_network((300,), 200, hidden_sizes=[400], dropout=dropout, drop_prob=drop_prob)[-1])
    assert torch.equal(heads[0].weight, heads[1].layer.weight)


def test_a_residual_network_adds_the_same_layers_to_what_comes_in():
    """By hand, in float64: h = W x; h += W a(n(h)) for each block, with weights of its own where the width differs."""
    torch.manual_seed(0)
    network = dense_network((4,), 2, hidden_sizes=[6, 6, 5], norm="layer", activation="tanh", residual=True).double()
    plain = dense_network((4,), 2, hidden_sizes=[6, 6, 5], norm="layer", activation="tanh")
    assert kinds(network) == ["Flatten", "Linear", "ResidualBlock", "ResidualBlock", "LayerNorm", "Tanh", "Linear"]
    assert sum(weight.numel() for weight in network.parameters()) == 6 * 5 + sum(w.numel() for w in plain.parameters())
    inputs = torch.randn(7, 4, dtype=torch.float64)
    weights = [parameter.detach() for parameter in network.parameters()]
    first, (scale1, shift1, second), (scale2, shift2, third, shortcut), (scale3, shift3, head, bias) = (
        weights[0],
        weights[1:4],
        weights[4:8],
        weights[8:],
    )

    def normalized(hidden, scale, shift):
        rows = []
        for row in hidden:
            centered = row - row.mean()
            rows.append(centered / (centered.square().mean() + 1e-5).sqrt() * scale + shift)
        return torch.stack(rows)

    hidden = inputs @ first.T
    hidden = hidden + normalized(hidden, scale1, shift1).tanh() @ second.T
    hidden = hidden @ shortcut.T + normalized(hidden, scale2, shift2).tanh() @ third.T
    expected = normalized(hidden, scale3, shift3).tanh() @ head.T + bias
    torch.testing.assert_close(network(inputs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("setting", "kind"), [("stochastic_depth_prob", StochasticDepth), ("shake_drop_prob", ShakeDrop)]
)
def test_branches_are_dropped_the_deeper_the_more_often(setting, kind):
    network = dense_network((4,), 2, hidden_sizes=[6, 6, 6], drop_prob=0.1, residual=True, **{setting: 0.4})
    dropping = [layer for layer in network.modules() if isinstance(layer, kind)]
    assert [layer.p for layer in dropping] == [0.2, 0.4]
    blocks = [layer for layer in network if isinstance(layer, ResidualBlock)]
    assert [block.branch[-1] for block in blocks] == dropping
    assert network.train()(torch.randn(3, 4)).shape == (3, 2)


def test_a_residual_network_whose_branches_are_all_dropped_is_that_of_its_shortcuts():
    torch.manual_seed(0)
    network = dense_network((4,), 2, hidden_sizes=[6, 6], norm="layer", residual=True, stochastic_depth_prob=1.0)
    inputs = torch.randn(3, 4)
    hidden = network[1](inputs)
    assert torch.equal(network.train()(inputs), network[5](network[4](network[3](hidden))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_sizes": [8]}, "hidden_sizes must name at least two layers with residual, .* but names 1"),
        ({"residual": False, "shake_drop_prob": 0.1}, "shake_drop_prob must be 0 without residual"),
        ({"shake_drop_prob": 0.1, "stochastic_depth_prob": 0.2}, "either drops the branches, but they are 0.2 and 0.1"),
        ({"stochastic_depth_prob": 1.2}, r"stochastic_depth_prob must be in \[0, 1\]"),
    ],
)
def test_branches_that_cannot_be_dropped_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        dense_network((4,), 2, **{"hidden_sizes": [6, 6], "residual": True, **settings})
