import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_reg.nn import (
    WeightDropGRU,
    WeightDropLSTM,
    WeightDropRNN,
    monte_carlo_predict,
    recurrent_network,
)
from lightning_reg.settings import SettingError

CELLS = [(nn.LSTM, WeightDropLSTM), (nn.GRU, WeightDropGRU), (nn.RNN, WeightDropRNN)]
# torch refuses others than AVX-512 processors the LSTM of oneDNN, which is the one it takes for bfloat16.
HAS_BFLOAT16_LSTM = torch.ops.mkldnn._is_mkldnn_bf16_supported()
NO_BFLOAT16_LSTM = "torch has no LSTM in bfloat16 on this processor"
bfloat16_lstm = pytest.mark.skipif(not HAS_BFLOAT16_LSTM, reason=NO_BFLOAT16_LSTM)
cells = pytest.mark.parametrize(("plain", "dropping"), CELLS, ids=["lstm", "gru", "rnn"])


def sequences(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def weights_in_use(cell, monkeypatch):
    """A list that fills with the recurrent matrices that the cell works with."""
    used = []
    monkeypatch.setattr(cell, "dropped", lambda weight: used.append(type(cell).dropped(cell, weight)) or used[-1])
    return used


@cells
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_it_is_torchs_module_with_dropped_recurrent_matrices(plain, dropping, settings, monkeypatch):
    torch.manual_seed(0)
    cell = dropping(4, 6, p=0.4, **settings).double()
    used = weights_in_use(cell, monkeypatch)
    inputs = sequences(5, 3, 4)
    outputs = cell(inputs)[0]
    outputs.square().sum().backward()

    oracle = plain(4, 6, **settings).double()
    oracle.load_state_dict(cell.state_dict())
    recurrent = [name for name, _ in oracle.named_parameters() if name.startswith("weight_hh")]
    assert len(used) == len(recurrent)
    masks = {}
    with torch.no_grad():
        for name, weight in zip(recurrent, used, strict=True):
            raw = getattr(cell, name)
            masks[name] = (weight != 0).double() / 0.6
            torch.testing.assert_close(weight, raw * masks[name])
            assert 0 < (weight == 0).sum() < weight.numel()
            getattr(oracle, name).copy_(weight)
    expected = oracle(inputs)[0]
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    expected.square().sum().backward()
    for name, parameter in oracle.named_parameters():
        gradient = parameter.grad * masks.get(name, 1.0)
        torch.testing.assert_close(getattr(cell, name).grad, gradient, rtol=1e-10, atol=1e-10)


def test_fraction_of_dropped_weights_is_p(monkeypatch):
    torch.manual_seed(0)
    cell = WeightDropLSTM(2, 64, p=0.3)
    used = weights_in_use(cell, monkeypatch)
    cell(sequences(3, 2, 2, dtype=torch.float32))
    count = used[0].numel()
    # Standard error of a fraction of independent draws: √(p(1 − p)/n).
    assert abs((used[0] == 0).double().mean().item() - 0.3) <= 4 * math.sqrt(0.3 * 0.7 / count)


def test_every_forward_pass_draws_a_new_mask():
    torch.manual_seed(0)
    cell = WeightDropRNN(4, 8)
    inputs = sequences(5, 3, 4, dtype=torch.float32)
    assert not torch.equal(cell(inputs)[0], cell(inputs)[0])


@cells
@pytest.mark.parametrize("idle", ["evaluation", "zero"])
def test_idle_weight_dropout_is_torchs_module_to_the_bit(plain, dropping, idle):
    cell = dropping(4, 6, p=0.0 if idle == "zero" else 0.5, bidirectional=True)
    cell.train(idle == "zero")
    oracle = plain(4, 6, bidirectional=True)
    oracle.load_state_dict(cell.state_dict())
    inputs = sequences(5, 3, 4, dtype=torch.float32)
    assert torch.equal(cell(inputs)[0], oracle(inputs)[0])


@cells
def test_names_of_weights_are_torchs(plain, dropping):
    settings = {"num_layers": 2, "bidirectional": True}
    assert list(dropping(4, 6, **settings).state_dict()) == list(plain(4, 6, **settings).state_dict())


def holds_its_parameters(cell):
    names = [name for name, _ in cell.named_parameters()]
    return all(flat_weight is getattr(cell, name) for flat_weight, name in zip(cell._flat_weights, names, strict=True))


def test_parameters_are_back_after_every_pass_and_after_an_exception():
    cell = WeightDropLSTM(4, 6)
    cell(torch.zeros(5, 3, 4))
    assert holds_its_parameters(cell)
    with pytest.raises(RuntimeError, match="input_size"):
        cell(torch.zeros(5, 3, 7))
    assert holds_its_parameters(cell)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cell: pickle.loads(pickle.dumps(cell))])
def test_copies_drop_their_own_weights(copied):
    original = WeightDropGRU(4, 6, p=0.5)
    original(torch.zeros(5, 3, 4))
    twin = copied(original)
    twin(torch.ones(5, 3, 4))[0].sum().backward()
    assert holds_its_parameters(twin)
    assert twin.weight_hh_l0.grad is not None
    assert original.weight_hh_l0.grad is None


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.bfloat16, marks=bfloat16_lstm)])
def test_weights_of_another_dtype_keep_it(dtype):
    cell = WeightDropLSTM(4, 6).to(dtype)
    outputs = cell(sequences(5, 3, 4, dtype=dtype))[0]
    outputs.sum().backward()
    assert outputs.dtype == cell.weight_hh_l0.grad.dtype == dtype


@cells
def test_autocast_leaves_gradients_in_full_precision(plain, dropping):
    if plain is nn.LSTM and not HAS_BFLOAT16_LSTM:
        pytest.skip(NO_BFLOAT16_LSTM)
    cell = dropping(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = cell(sequences(5, 3, 4, dtype=torch.float32))[0]
    outputs.float().sum().backward()
    assert outputs.isfinite().all()
    assert cell.weight_hh_l0.grad.dtype == torch.float32


def test_packed_sequences_pass():
    cell = WeightDropGRU(4, 6, batch_first=True).eval()
    inputs = sequences(2, 5, 4, dtype=torch.float32)
    packed = pack_padded_sequence(inputs, torch.tensor([5, 3]), batch_first=True)
    expected = cell(inputs[1:, :3])[1]
    assert torch.allclose(cell(packed)[1][:, 1:], expected, atol=1e-6)
    assert cell.train()(packed)[0].data.shape == (8, 6)


def test_masks_hold_where_weights_are_swapped_from_outside():
    """torch.func puts other weights in, which torch's modules notice in the middle of the forward pass."""
    torch.manual_seed(0)
    cell = WeightDropLSTM(4, 6)
    inputs = sequences(5, 3, 4, dtype=torch.float32)
    outputs = []
    for _ in range(2):
        weights = {name: value.detach().clone() for name, value in cell.named_parameters()}
        outputs.append(torch.func.functional_call(cell, weights, (inputs,))[0])
    assert not torch.equal(*outputs)
    cell(inputs)
    assert holds_its_parameters(cell)


def test_what_is_put_in_one_piece_for_cudnn_are_copies(monkeypatch):
    """As on a GPU, where flattening gives every weight it finds other memory."""

    def flatten(cell):
        with torch.no_grad():
            for weight in cell._flat_weights:
                weight.set_(weight.clone())

    monkeypatch.setattr(WeightDropLSTM, "flatten_parameters", flatten)
    cell = WeightDropLSTM(4, 6)
    where = [parameter.data_ptr() for parameter in cell.parameters()]
    cell(sequences(5, 3, 4, dtype=torch.float32))[0].sum().backward()
    assert [parameter.data_ptr() for parameter in cell.parameters()] == where
    assert all(parameter.grad.any() for parameter in cell.parameters())


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_probability_out_of_range_is_refused(p):
    with pytest.raises(SettingError, match=r"p must be in \[0, 1\]"):
        WeightDropGRU(4, 6, p=p)


@pytest.mark.parametrize(("name", "plain"), [("lstm", nn.LSTM), ("gru", nn.GRU), ("rnn", nn.RNN)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_stacked_layers_are_torchs_stacked_module(name, plain, bidirectional):
    settings = {"num_layers": 2, "bidirectional": bidirectional}
    network = recurrent_network((5, 4), 3, cell=name, hidden_size=6, **settings).double()
    oracle = plain(4, 6, batch_first=True, **settings).double()
    with torch.no_grad():
        for index in range(2):
            cell = network.get_submodule(f"recurrent{index}.cell")
            for parameter_name, value in cell.named_parameters():
                getattr(oracle, parameter_name.replace("l0", f"l{index}")).copy_(value)
    inputs = sequences(2, 5, 4)
    state = oracle(inputs)[1]
    state = state[0] if name == "lstm" else state
    final = torch.cat([*state[-2:]], 1) if bidirectional else state[-1]
    torch.testing.assert_close(network(inputs), network.head(final), rtol=1e-12, atol=1e-12)


def test_order_is_cell_norm_dropout():
    network = recurrent_network((1, 8, 8), 3, hidden_size=6, num_layers=2, norm="layer", drop_prob=0.1)
    assert [name for name, _ in network.named_children()] == [
        *("rows", "recurrent0", "norm0", "dropout0", "recurrent1", "norm1", "dropout1", "pool", "head")
    ]


def test_monte_carlo_passes_drop_recurrent_weights():
    network = recurrent_network((1, 8, 8), 3, hidden_size=6, weight_drop_prob=0.5).eval()
    assert monte_carlo_predict(network, torch.randn(2, 1, 8, 8)).std.all()
    assert not network.recurrent0.cell.training


def test_names_of_weights_do_not_depend_on_rates():
    plain = recurrent_network((1, 8, 8), 3, hidden_size=6, num_layers=2, norm="batch")
    dropping = recurrent_network(
        (1, 8, 8), 3, hidden_size=6, num_layers=2, norm="batch", drop_prob=0.5, weight_drop_prob=0.5
    )
    dropping.load_state_dict(plain.state_dict())
    inputs = torch.randn(2, 1, 8, 8)
    assert torch.equal(plain.eval()(inputs), dropping.eval()(inputs))
    assert not torch.equal(dropping(inputs), dropping.train()(inputs))


@pytest.mark.parametrize("pool", ["last", "mean", "max"])
@pytest.mark.parametrize("norm", ["none", "layer", "rms", "batch"])
def test_sequences_of_any_length_pass(pool, norm):
    network = recurrent_network((5, 4), 3, hidden_size=6, bidirectional=True, norm=norm, pool=pool)
    assert network(torch.randn(2, 5, 4)).shape == network(torch.randn(2, 9, 4)).shape == (2, 3)


# The compiler leaves torch's recurrent modules out, and reads .grad of what comes out of them.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_network_computes_the_same():
    network = recurrent_network((1, 8, 8), 3, hidden_size=6, norm="layer", drop_prob=0.2, weight_drop_prob=0.2)
    compiled = torch.compile(network, backend="aot_eager")
    inputs = torch.randn(2, 1, 8, 8)
    compiled(inputs).sum().backward()
    assert network.recurrent0.cell.weight_hh_l0.grad.any()
    network.eval()
    torch.testing.assert_close(compiled(inputs), network(inputs))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_shape": (64,)}, r"input_shape must be \(time, features\) of a sequence or .* but is \(64,\)"),
        ({"cell": "lstn"}, "cell must be one of lstm, gru, rnn, but is 'lstn'; did you mean 'lstm'"),
        ({"pool": "first"}, "pool must be one of last, mean, max"),
        ({"num_layers": 0}, "num_layers must be a whole number of at least 1, but is 0"),
        ({"hidden_size": 0}, "hidden_size must be a whole number"),
        ({"weight_drop_prob": 1.5}, r"weight_drop_prob must be in \[0, 1\], but is 1.5"),
        ({"drop_prob": -0.5}, r"drop_prob must be in \[0, 1\], but is -0.5"),
        ({"norm": "bach"}, "norm must be one of none, batch"),
        ({"init": "xavier"}, "init must be one of"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        recurrent_network(**{"input_shape": (1, 8, 8), "num_outputs": 3, **settings})


def test_flat_inputs_are_refused_with_their_shape():
    with pytest.raises(SettingError, match=r"but have \(2, 64\)"):
        recurrent_network((1, 8, 8), 3)(torch.zeros(2, 64))
