import pytest
import torch
from torch import nn

from lightning_reg.nn import ACTIVATIONS, DROPOUTS, NORMS, make_activation, make_dropout, make_norm
from lightning_reg.settings import SettingError

SHAPES = {0: (4, 64), 1: (4, 64, 5), 2: (4, 64, 5, 5), 3: (4, 64, 3, 3, 3)}


@pytest.mark.parametrize(("norm", "dims"), [(norm, dims) for norm, by_dims in NORMS.items() for dims in by_dims])
def test_every_norm_keeps_the_shape_it_is_made_for(norm, dims):
    inputs = torch.randn(SHAPES[dims])
    assert make_norm(norm, 64, spatial_dims=dims)(inputs).shape == inputs.shape


def test_layer_norm_on_images_normalizes_each_position():
    out = make_norm("layer", 64, spatial_dims=2)(torch.randn(2, 64, 3, 3))
    assert out.mean(1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (6, 1), (33, 1), (32, 2), (48, 3), (100, 5), (512, 32), (4096, 32)]
)
def test_group_norm_has_at_most_32_groups_of_at_least_16(channels, groups):
    assert make_norm("group", channels, spatial_dims=2).num_groups == groups


@pytest.mark.parametrize("norm", [name for name, by_dims in NORMS.items() if 0 in by_dims])
def test_no_norm_makes_features_constant(norm):
    """A group of one feature would be normalized to nothing."""
    layer = make_norm(norm, 32)
    assert layer(torch.randn(256, 32)).var(0).min() > 0.1


def test_instance_norm_without_positions_is_refused():
    with pytest.raises(SettingError, match="'instance' needs positions"):
        make_norm("instance", 8)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_keeps_the_shape(name):
    assert make_activation(name)(torch.randn(2, 3)).shape == (2, 3)


@pytest.mark.parametrize(("name", "dims"), [(name, dims) for name, by_dims in DROPOUTS.items() for dims in by_dims])
def test_every_dropout_is_the_identity_in_evaluation_and_not_in_training(name, dims):
    torch.manual_seed(0)
    layer = make_dropout(name, 0.5, spatial_dims=dims)
    inputs = torch.randn(SHAPES[dims])
    assert torch.equal(layer.eval()(inputs), inputs)
    assert not torch.equal(layer.train()(inputs), inputs)


def test_spatial_dropout_drops_whole_channels():
    torch.manual_seed(0)
    out = make_dropout("spatial", 0.5, spatial_dims=2)(torch.ones(8, 16, 4, 4))
    per_channel = out.flatten(2)
    assert ((per_channel == 0).all(2) | (per_channel == 2).all(2)).all()


def test_callables_and_import_paths_make_layers():
    assert isinstance(make_norm(nn.LayerNorm, 4), nn.LayerNorm)
    assert isinstance(make_norm("torch.nn.LayerNorm", 4), nn.LayerNorm)
    assert isinstance(make_activation(nn.Hardswish), nn.Hardswish)
    assert make_dropout("torch.nn.FeatureAlphaDropout", 0.25).p == 0.25


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_norm("bach", 4), "norm must be one of none, batch.*did you mean 'batch'"),
        (lambda: make_activation("rellu"), "activation must be one of none, relu.*did you mean 'relu'"),
        (lambda: make_dropout("block", 0.5), "dropout must be one of standard"),
        (lambda: make_dropout("block", 0), "dropout must be one of standard"),
        (lambda: make_dropout("gaussian", 1.0), r"drop_prob must be in \[0, 1\), but is 1.0"),
    ],
)
def test_unknown_names_and_probabilities_are_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()
