"""Recurrent layers whose units keep their state at random, beside loops by hand and torch's own modules."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_reg.functional.forward.noise import NoiseStream
from lightning_reg.models.masks import KeyedMasks
from lightning_reg.nn import ZoneoutGRU, ZoneoutLSTM, ZoneoutRNN, monte_carlo_predict, recurrent_network
from lightning_reg.nn.rates import is_stochastic, rates
from lightning_reg.settings import SettingError

CELLS = [(nn.LSTM, ZoneoutLSTM), (nn.GRU, ZoneoutGRU), (nn.RNN, ZoneoutRNN)]
STEPS, SAMPLES, FEATURES, WIDTH = 5, 3, 4, 6
P, P_CELL = 0.3, 0.6


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def lstm(inputs, states, w, u, b, c):
    hidden, cell = states
    gates = (inputs @ w.T + b + hidden @ u.T + c).split(WIDTH, 1)
    cell = gates[1].sigmoid() * cell + gates[0].sigmoid() * gates[2].tanh()
    return gates[3].sigmoid() * cell.tanh(), cell


def gru(inputs, states, w, u, b, c):
    reset, update, new = (inputs @ w.T + b).split(WIDTH, 1)
    hidden_reset, hidden_update, hidden_new = (states[0] @ u.T + c).split(WIDTH, 1)
    z = (update + hidden_update).sigmoid()
    return (z * states[0] + (1 - z) * (new + (reset + hidden_reset).sigmoid() * hidden_new).tanh(),)


def rnn(inputs, states, w, u, b, c):
    return ((inputs @ w.T + b + states[0] @ u.T + c).tanh(),)


BY_HAND = {ZoneoutLSTM: lstm, ZoneoutGRU: gru, ZoneoutRNN: rnn}


def read_by_hand(layer, inputs, numbers):
    """Two layers that read in both directions, (T, N, F); in training where there are numbers."""
    step = BY_HAND[type(layer)]
    chances = [P, P_CELL][: 2 if step is lstm else 1]
    for level in range(2):
        both = []
        for direction, end in enumerate(("", "_reverse")):
            weights = [
                getattr(layer, f"{name}_l{level}{end}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            states = [torch.zeros(SAMPLES, WIDTH, dtype=inputs.dtype) for _ in chances]
            outputs = [None] * STEPS
            for time in range(STEPS)[:: -1 if direction else 1]:
                new = step(inputs[time], states, *weights)
                for index, p in enumerate(chances):
                    if numbers is None:
                        states[index] = p * states[index] + (1 - p) * new[index]
                    else:
                        rows = numbers[index, 2 * level + direction].view(STEPS, SAMPLES, WIDTH)
                        keep = (rows[time] < p).to(inputs.dtype)
                        states[index] = keep * states[index] + (1 - keep) * new[index]
                outputs[time] = states[0]
            both.append(torch.stack(outputs))
        inputs = torch.cat(both, 2)
    return inputs


@pytest.mark.parametrize("kind", BY_HAND)
@pytest.mark.parametrize("training", [True, False])
def test_states_are_kept_as_a_loop_by_hand_keeps_them_and_so_are_gradients(kind, training):
    settings = {"p_cell": P_CELL} if kind is ZoneoutLSTM else {}
    layer = kind(FEATURES, WIDTH, p=P, num_layers=2, bidirectional=True, **settings).double().train(training)
    layer.stream = NoiseStream()
    layer.stream.start(7)
    inputs = torch.randn(STEPS, SAMPLES, FEATURES, dtype=torch.float64)
    outputs = layer(inputs)[0]
    again = NoiseStream()
    again.start(7)
    shape = (len(layer.rates), 4, STEPS * SAMPLES, WIDTH)
    numbers = again.draw("uniform", torch.empty(0), shape) if training else None
    expected = read_by_hand(layer, inputs, numbers)
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    weights = list(layer.parameters())
    found, wanted = (torch.autograd.grad(out.square().sum(), weights) for out in (outputs, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def everything(kind, batch_first):
    """Inputs of all forms, with and without a state to begin with."""
    sequences = torch.randn(SAMPLES, STEPS, FEATURES) if batch_first else torch.randn(STEPS, SAMPLES, FEATURES)
    lengths = [2, 5, 3]

    def states(*samples):
        made = [torch.randn(4, *samples, WIDTH) for _ in range(2)]
        return tuple(made) if kind is nn.LSTM else made[0]

    yield sequences, None
    yield sequences, states(SAMPLES)
    yield torch.randn(STEPS, FEATURES), None
    yield torch.randn(STEPS, FEATURES), states()
    for given in (None, states(SAMPLES)):
        yield pack_padded_sequence(sequences, lengths, batch_first=batch_first, enforce_sorted=False), given


@pytest.mark.parametrize(("plain", "kind"), CELLS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_of_a_rate_next_to_nothing_it_is_torchs_module_for_inputs_of_every_form(plain, kind, batch_first, bias):
    settings = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first, "bias": bias}
    layer, oracle = kind(FEATURES, WIDTH, p=1e-30, **settings), plain(FEATURES, WIDTH, **settings)
    oracle.load_state_dict(layer.state_dict())
    for inputs, states in everything(plain, batch_first):
        for training in (True, False):
            found, wanted = layer.train(training)(inputs, states), oracle(inputs, states)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("plain", "kind"), CELLS)
def test_of_a_rate_of_zero_it_is_torchs_module_to_the_bit_and_of_one_it_stays_where_it_begins(plain, kind):
    inputs = torch.randn(STEPS, SAMPLES, FEATURES)
    layer, oracle = kind(FEATURES, WIDTH, p=0.0), plain(FEATURES, WIDTH)
    oracle.load_state_dict(layer.state_dict())
    assert torch.equal(layer(inputs)[0], oracle(inputs)[0])
    layer.p = 1.0
    for training in (True, False):
        assert not layer.train(training)(inputs)[0].any()


def test_units_are_kept_with_probability_p_at_each_step_by_themselves():
    layer = ZoneoutLSTM(1, 100, p=0.2)
    outputs = layer(torch.randn(50, 40, 1))[0]
    kept = (outputs[1:] == outputs[:-1]).float()
    assert abs(kept.mean().item() - 0.2) <= 4 * (0.2 * 0.8 / kept.numel()) ** 0.5
    assert kept.std(0).min() > 0
    assert kept.std(1).min() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept_and_autocast_trains(dtype):
    layer = ZoneoutLSTM(FEATURES, WIDTH).to(dtype)
    assert layer(torch.randn(STEPS, SAMPLES, FEATURES, dtype=dtype))[0].dtype == dtype
    layer = ZoneoutGRU(FEATURES, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = layer(torch.randn(STEPS, SAMPLES, FEATURES))[0]
    outputs.float().sum().backward()
    assert layer.weight_hh_l0.grad.isfinite().all()


def test_its_rates_are_known_and_its_masks_are_those_of_the_step():
    network = recurrent_network((STEPS, FEATURES), 3, hidden_size=WIDTH, zoneout_prob=P)
    cell = network.recurrent0.cell
    assert isinstance(cell, ZoneoutLSTM)
    cell.p_cell = P_CELL
    assert is_stochastic(cell)
    assert {rate.attribute: rate.value for rate in rates(network) if rate.value} == {"p": P, "p_cell": P_CELL}
    inputs, masks = torch.randn(SAMPLES, STEPS, FEATURES), KeyedMasks(network)
    outputs = []
    for batch in (0, 0, 1):
        masks.start(0, batch)
        outputs.append(network(inputs))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    masks.end()
    assert monte_carlo_predict(network, inputs, num_samples=4).std.min() > 0


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_weights_of_a_network_keep_their_names(cell):
    names = [list(recurrent_network((STEPS, FEATURES), 3, cell=cell, zoneout_prob=p).state_dict()) for p in (0.0, 0.1)]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZoneoutGRU(3, 4, p=-0.1), r"p must be in \[0, 1\], but is -0.1"),
        (lambda: ZoneoutLSTM(3, 4, p_cell=1.5), r"p_cell must be in \[0, 1\], but is 1.5"),
        (lambda: recurrent_network((4, 3), 2, zoneout_prob=2.0), r"zoneout_prob must be in \[0, 1\]"),
        (
            lambda: recurrent_network((4, 3), 2, zoneout_prob=0.1, weight_drop_prob=0.2),
            "weight_drop_prob or zoneout_prob must be 0, .* but they are 0.2 and 0.1",
        ),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()
