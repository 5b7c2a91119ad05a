"""Which tokens stay, of how many, and what goes with them."""

import itertools
from fractions import Fraction

import pytest
import torch

from lightning_reg.functional.forward.tokens import kept_count, kept_tokens
from lightning_reg.nn import TokenDropout, monte_carlo_predict, transformer_network
from lightning_reg.settings import SettingError


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_counts_are_those_of_exact_fractions():
    for length, percent in itertools.product(range(1, 201), range(101)):
        expected = max(1, int(length * (1 - Fraction(percent, 100))))
        assert kept_count(length, percent / 100) == expected


def by_hand(numbers, p, prefix, padding):
    """For each sample: its share of true tokens with the smallest numbers, then padding, until as many are kept."""
    rows = []
    for row, hidden in zip(numbers.tolist(), padding.tolist(), strict=True):
        count = max(1, int(len(row) * (1 - Fraction(str(p)))))
        order = sorted(range(len(row)), key=row.__getitem__)
        true_tokens = [place for place in order if not hidden[place]]
        share = max(1, int(len(true_tokens) * (1 - Fraction(str(p)))))
        chosen = true_tokens[:share] + [place for place in order if hidden[place]] + true_tokens[share:]
        rows.append([*range(prefix), *(prefix + place for place in sorted(chosen[:count]))])
    return rows


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("prefix", [0, 2])
def test_kept_tokens_are_those_of_a_loop_over_samples(p, prefix):
    uniform = torch.rand(50, 13)
    plain = torch.zeros(50, 13, dtype=torch.bool)
    assert kept_tokens(uniform, p, prefix=prefix).tolist() == by_hand(uniform, p, prefix, plain)
    lengths = torch.randint(0, 14, (50, 1))
    padding = torch.arange(13) >= lengths
    assert kept_tokens(uniform, p, prefix=prefix, padding=padding).tolist() == by_hand(uniform, p, prefix, padding)


def test_every_token_is_dropped_as_often_and_samples_differ():
    inputs = torch.arange(10.0).view(1, 10, 1).expand(20_000, -1, -1)
    out = TokenDropout(0.3)(inputs)[..., 0]
    assert out.shape == (20_000, 7)
    assert (out.diff(dim=1) > 0).all()  # in their order
    shares = torch.stack([(out == place).any(1).double().mean() for place in range(10)])
    assert (shares - 0.7).abs().max() <= 4.5 * (0.7 * 0.3 / 20_000) ** 0.5  # of ten, four at once would be too strict
    assert len(out.unique(dim=0)) == 120  # all ways to drop three of ten


@pytest.mark.parametrize(("length", "prefix", "count"), [(9, 1, 5), (9, 0, 4), (1, 1, 1), (2, 1, 2), (1, 3, 1)])
def test_the_prefix_stays_and_one_token_more(length, prefix, count):
    inputs = torch.randn(4, length, 2)
    out = TokenDropout(0.5, num_prefix_tokens=prefix)(inputs)
    assert out.shape == (4, count, 2)
    assert torch.equal(out[:, : min(prefix, length)], inputs[:, :prefix])


def test_evaluation_and_a_rate_of_zero_keep_all():
    inputs, padding = torch.randn(4, 6, 2), torch.zeros(4, 6, dtype=torch.bool)
    assert TokenDropout(0.5).eval()(inputs) is inputs
    assert TokenDropout(0.0)(inputs) is inputs
    tokens, mask = TokenDropout(0.0)(inputs, padding)
    assert tokens is inputs
    assert mask is padding


def test_padding_goes_with_its_tokens():
    inputs = torch.arange(6.0).view(1, 6, 1).expand(8, -1, -1)
    padding = torch.arange(6) >= torch.tensor([1, 2, 3, 4, 5, 6, 6, 6]).view(-1, 1)
    tokens, mask = TokenDropout(0.5)(inputs, padding)
    assert torch.equal(mask, padding.gather(1, tokens[..., 0].long()))
    assert (~mask).sum(1).tolist() == [1, 1, 1, 2, 2, 3, 3, 3]


def test_gradients_reach_the_tokens_that_stay_alone():
    inputs = torch.randn(3, 8, 2, requires_grad=True)
    TokenDropout(0.25)(inputs).sum().backward()
    assert inputs.grad.sum().item() == 3 * 6 * 2
    assert set(inputs.grad.unique().tolist()) == {0.0, 1.0}


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    compiled = torch.compile(TokenDropout(0.5, num_prefix_tokens=1), backend="aot_eager", fullgraph=True)
    assert compiled(torch.randn(4, 9, 2)).shape == (4, 5, 2)
    torch._dynamo.reset()


@pytest.mark.parametrize("pool", ["mean", "class_token"])
def test_a_transformer_drops_behind_positions_and_keeps_its_class_token(pool):
    network = transformer_network((1, 8, 8), 3, patch_size=2, depth=2, embed_dim=8, pool=pool, token_drop_prob=0.5)
    plain = transformer_network((1, 8, 8), 3, patch_size=2, depth=2, embed_dim=8, pool=pool)
    plain.load_state_dict(network.state_dict())
    seen = []
    network.block0.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randn(5, 1, 8, 8)
    network.train()(images)
    tokens = network.embedding(images)
    first = int(pool == "class_token")
    assert seen[0].shape == (5, 8 + first, 8)
    assert all(any(kept.equal(token) for token in tokens[0]) for kept in seen[0][0])
    assert torch.equal(seen[0][:, :first], tokens[:, :first])
    assert torch.equal(network.eval()(images), plain.eval()(images))
    assert monte_carlo_predict(network, images, num_samples=3).std.max() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenDropout(1.5), r"p must be in \[0, 1\]"),
        (lambda: TokenDropout(num_prefix_tokens=-1), "num_prefix_tokens must be"),
        (lambda: TokenDropout()(torch.ones(4, 3)), r"must have the shape \(N, T, E\), but have \(4, 3\)"),
        (lambda: transformer_network((4, 3), 2, token_drop_prob=-0.1), r"token_drop_prob must be in \[0, 1\]"),
    ],
)
def test_what_cannot_be_dropped_is_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()
