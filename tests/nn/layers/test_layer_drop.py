"""Blocks that are left out for a whole batch."""

import copy
import itertools

import pytest
import torch
from torch import nn

from lightning_reg.functional.forward.noise import NoiseStream
from lightning_reg.models.masks import KeyedMasks
from lightning_reg.nn import LayerDrop, ResidualBlock, monte_carlo_predict
from lightning_reg.settings import SettingError


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def blocks(count=4):
    return [ResidualBlock(nn.Sequential(nn.Linear(3, 3), nn.Tanh())) for _ in range(count)]


def test_what_is_left_out_is_not_run_and_its_gradients_are_zeros():
    """Beside a sequence of the other blocks, in float64."""
    network = LayerDrop(*blocks(8), p=0.5).double()
    network.stream = NoiseStream()
    network.stream.start(3)
    again = NoiseStream()
    again.start(3)
    runs = again.draw("uniform", torch.empty(0), (8,)) >= 0.5
    assert 0 < runs.sum() < 8
    seen = []
    for index, block in enumerate(network):
        block.register_forward_hook(lambda *_, index=index: seen.append(index))
    inputs = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    oracle = copy.deepcopy(network)
    outputs = network(inputs)
    assert seen == runs.nonzero().flatten().tolist()
    expected = inputs
    for block, is_run in zip(oracle, runs, strict=True):
        expected = expected + block.branch(expected) if is_run else expected
    assert torch.equal(outputs, expected)
    (gradient,) = torch.autograd.grad(outputs.square().sum(), inputs, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.square().sum(), inputs, retain_graph=True)
    assert torch.equal(gradient, wanted)
    outputs.square().sum().backward()
    expected.square().sum().backward()
    for block, other, is_run in zip(network, oracle, runs, strict=True):
        for weight, by_hand in zip(block.parameters(), other.parameters(), strict=True):
            assert torch.equal(weight.grad, by_hand.grad if is_run else torch.zeros_like(weight))


def test_blocks_are_left_out_with_probability_p_by_themselves():
    network = LayerDrop(*[ResidualBlock(nn.Identity()) for _ in range(10)], p=0.3)
    counts = torch.stack([network(torch.ones(2, 1))[:, 0].log2() for _ in range(1000)])
    assert torch.equal(counts[:, 0], counts[:, 1])
    assert abs(counts.mean().item() - 7) <= 4 * (10 * 0.3 * 0.7 / 1000) ** 0.5
    assert counts[:, 0].var().item() == pytest.approx(10 * 0.3 * 0.7, rel=0.2)  # 4 √(2 / 1000)


def test_evaluation_and_a_rate_of_zero_run_all_under_the_names_of_a_sequence():
    plain = nn.Sequential(*blocks())
    network = LayerDrop(*copy.deepcopy(list(plain)), p=0.5)
    assert list(network.state_dict()) == list(plain.state_dict())
    inputs = torch.randn(5, 3)
    assert torch.equal(network.eval()(inputs), plain(inputs))
    network.train().p = 0.0
    assert torch.equal(network(inputs), plain(inputs))


def test_compiled_it_is_one_graph_for_all_draws():
    torch._dynamo.reset()
    network = LayerDrop(*blocks(2), p=0.5)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    inputs = torch.randn(5, 3)
    possible = []
    for runs in itertools.product([False, True], repeat=2):
        outputs = inputs
        for block, is_run in zip(network, runs, strict=True):
            outputs = block(outputs) if is_run else outputs
        possible.append(outputs)
    found = set()
    for _ in range(40):
        outputs = compiled(inputs)
        found |= {index for index, wanted in enumerate(possible) if torch.allclose(outputs, wanted)}
    assert found == {0, 1, 2, 3}
    torch._dynamo.reset()


def test_draws_are_those_of_the_step_and_predictions_are_uncertain():
    network = nn.Sequential(nn.Linear(3, 3), LayerDrop(*blocks(), p=0.5))
    masks, inputs, outputs = KeyedMasks(network), torch.randn(5, 3), []
    for batch in (0, 0, 1):
        masks.start(0, batch)
        outputs.append(network(inputs))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    masks.end()
    assert monte_carlo_predict(network, inputs, num_samples=8).std.max() > 0


def test_blocks_that_change_the_shape_are_refused():
    with pytest.raises(SettingError, match=r"a Linear makes \(5, 2\) of \(5, 3\)"):
        LayerDrop(nn.Linear(3, 2), p=0.01)(torch.randn(5, 3))
    with pytest.raises(SettingError, match=r"p must be in \[0, 1\], but is 2"):
        LayerDrop(p=2)
