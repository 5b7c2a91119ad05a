import pytest
import torch
from torch import nn

from lightning_reg.nn import NORMS, VariationalDropout
from lightning_reg.nn.networks.sequences import (
    ImageRows,
    OverTime,
    SequencePool,
    make_sequence_dropout,
    make_sequence_norm,
)
from lightning_reg.settings import SettingError


def sequences(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_step_is_one_row_of_every_channel():
    images = sequences(2, 3, 5, 4)
    steps = ImageRows()(images)
    for row in range(5):
        assert torch.equal(steps[:, row], torch.cat([images[:, channel, row] for channel in range(3)], 1))


def test_sequences_stay_as_they_are():
    inputs = sequences(2, 5, 4)
    assert ImageRows()(inputs) is inputs


@pytest.mark.parametrize("shape", [(4,), (4, 64), (4, 1, 2, 8, 8)])
def test_other_ranks_are_refused_with_the_shape(shape):
    with pytest.raises(SettingError, match=rf"\(N, T, F\) of sequences or .* but have \({', '.join(map(str, shape))}"):
        ImageRows()(torch.zeros(shape))


def test_pooling_is_what_it_says():
    inputs = sequences(2, 5, 4)
    steps = list(inputs.unbind(1))
    assert torch.equal(SequencePool("first")(inputs), steps[0])
    assert torch.equal(SequencePool("last")(inputs), steps[-1])
    torch.testing.assert_close(SequencePool("mean")(inputs), sum(steps) / 5)
    assert torch.equal(SequencePool("max")(inputs), torch.stack(steps).max(0).values)


def test_last_of_both_directions_is_the_state_each_ends_with():
    cell = nn.GRU(4, 3, batch_first=True, bidirectional=True).double()
    outputs, state = cell(sequences(2, 5, 4))
    assert torch.equal(SequencePool("last", bidirectional=True)(outputs), torch.cat([*state], 1))


def test_unknown_pooling_is_refused():
    with pytest.raises(SettingError, match="mode must be one of first, last, mean, max"):
        SequencePool("median")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(4, 7, 32), (4, 32, 32)], ids=["uneven", "as_many_steps_as_features"])
def test_every_norm_keeps_the_shape_of_sequences(norm, shape):
    inputs = torch.randn(shape)
    assert make_sequence_norm(norm, 32)(inputs).shape == shape


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_each_step_is_normalized_by_itself(norm):
    inputs = sequences(2, 5, 4)
    layer = make_sequence_norm(norm, 4).double()
    alone = torch.stack([layer(step) for step in inputs.unbind(1)], 1)
    torch.testing.assert_close(layer(inputs), alone)


@pytest.mark.parametrize("norm", ["batch", nn.BatchNorm1d, "torch.nn.BatchNorm1d"])
def test_batch_norm_averages_over_samples_and_time(norm):
    """With as many steps as features, torch's layer would silently take one for the other."""
    inputs = sequences(6, 4, 4)
    out = make_sequence_norm(norm, 4).double()(inputs)
    expected = (inputs - inputs.mean((0, 1))) / (inputs.var((0, 1), correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(out, expected)


def test_group_norm_averages_over_the_time_of_one_sample():
    inputs = sequences(3, 32, 32)
    out = make_sequence_norm("group", 32).double()(inputs).unflatten(2, (2, 16))
    torch.testing.assert_close(out.mean((1, 3)), torch.zeros(3, 2).double(), atol=1e-12, rtol=0)


def test_callables_get_sequences_as_they_are():
    assert isinstance(make_sequence_norm(nn.LayerNorm, 4), nn.LayerNorm)
    assert isinstance(make_sequence_norm(lambda features: nn.GroupNorm(2, features), 4), OverTime)


@pytest.mark.parametrize("dropout", ["variational", "spatial"])
def test_variational_dropout_drops_a_feature_at_all_steps(dropout):
    torch.manual_seed(0)
    out = make_sequence_dropout(dropout, 0.5)(torch.ones(8, 6, 16))
    assert ((out == 0).all(1) | (out == 2).all(1)).all()
    assert (out == 0).any()
    assert (out[0] != out[1]).any()


@pytest.mark.parametrize("dropout", ["standard", "alpha", "gaussian"])
def test_other_dropouts_draw_for_every_step(dropout):
    torch.manual_seed(0)
    out = make_sequence_dropout(dropout, 0.5)(torch.ones(8, 6, 16))
    assert (out[:, 0] != out[:, 1]).any()


@pytest.mark.parametrize("dropout", ["variational", "standard"])
def test_nothing_is_made_at_probability_zero(dropout):
    assert isinstance(make_sequence_dropout(dropout, 0), nn.Identity)


def test_any_callable_makes_the_dropout():
    assert make_sequence_dropout(lambda p: VariationalDropout(p / 2), 0.5).p == 0.25


@pytest.mark.parametrize(
    ("dropout", "p", "message"),
    [
        ("variational", 1.5, r"drop_prob must be in \[0, 1\], but is 1.5"),
        ("varational", 0.1, "dropout must be one of"),
        ("drop_connect", 0.1, "dropout must be a layer of its own .* but is 'drop_connect'; allowed are variational"),
    ],
)
def test_bad_dropout_is_refused(dropout, p, message):
    with pytest.raises(SettingError, match=message):
        make_sequence_dropout(dropout, p)
