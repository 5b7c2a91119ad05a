"""Ones and zeros that are drawn several at a time are what torch would draw one by one."""

import math

import pytest
import torch

from lightning_reg.functional import bernoulli
from lightning_reg.functional.bernoulli import bernoulli_int16, is_faster, random_signs

MANY = 2_000_000
# By torch, by lanes of torch's and of NumPy's generator, by distances, of rare ones and of rare zeros.
NUMBERS = [1000, 2**15, MANY]
RATES = [0.001, 0.0123, 1 / 3, 0.5, 0.7, 0.9, 0.9995]


@pytest.fixture(autouse=True)
def _by_lanes(monkeypatch):
    """As on a CPU where torch draws one by one."""
    monkeypatch.setattr(bernoulli, "_draws_in_threads", lambda: False)
    torch.manual_seed(0)


def assert_rate(drawn, p):
    """Within four standard errors."""
    drawn = drawn.double()
    assert abs(drawn.mean().item() - p) <= 4 * math.sqrt(p * (1 - p) / drawn.numel())


@pytest.mark.parametrize("numel", NUMBERS)
@pytest.mark.parametrize("p", RATES)
def test_ones_and_zeros_at_the_rate_asked_for(numel, p):
    drawn = bernoulli_int16(numel, p)
    assert drawn.shape == (numel,)
    assert drawn.dtype == torch.int16
    assert set(drawn.unique().tolist()) <= {0, 1}
    assert_rate(drawn, p)


@pytest.mark.parametrize("numel", [2**15, MANY])
@pytest.mark.parametrize("p", RATES)
def test_no_lane_of_a_random_number_is_biased(numel, p):
    drawn = torch.cat([bernoulli_int16(numel, p) for _ in range(max(MANY // numel, 1))]).view(-1, 4)
    for lane in drawn.unbind(1):
        assert_rate(lane, p)


@pytest.mark.parametrize("p", [0.0123, 0.3])
def test_neighbors_are_independent(p):
    drawn = bernoulli_int16(MANY, p).double()
    for distance in range(1, 9):
        both = drawn[:-distance] * drawn[distance:]
        # Its products overlap, but are uncorrelated where factors are independent, once the means are taken off.
        centered = (drawn[:-distance] - p) * (drawn[distance:] - p)
        assert abs(centered.mean().item()) <= 4 * p * (1 - p) / math.sqrt(both.numel())


@pytest.mark.parametrize("p", [0.0123, 0.3])
def test_counts_vary_as_a_binomials(p):
    """The variance of a variance of a normal is 2 σ⁴ / n."""
    counts = torch.stack([bernoulli_int16(2**16, p).sum(dtype=torch.float64) for _ in range(2000)])
    variance = 2**16 * p * (1 - p)
    assert abs(counts.var().item() - variance) <= 4 * variance * math.sqrt(2 / 2000)


def test_a_rate_between_two_levels_is_met_exactly_by_drawing_the_threshold(monkeypatch):
    """A quarter of a level above 0.5: a fourth of the thresholds are one higher. Seen from the words that are drawn."""
    p = 0.5 + 0.25 / 2**16
    thresholds = []
    lt = torch.Tensor.lt_
    monkeypatch.setattr(torch.Tensor, "lt_", lambda self, other: (thresholds.append(other), lt(self, other))[1])
    for _ in range(2000):
        bernoulli_int16(2**14, p)
    assert set(thresholds) == {0, 1}
    assert abs(sum(thresholds) / 2000 - 0.25) <= 4 * math.sqrt(0.25 * 0.75 / 2000)


@pytest.mark.parametrize("numel", NUMBERS)
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_certainty(numel, p):
    assert (bernoulli_int16(numel, p) == p).all()


@pytest.mark.parametrize("numel", NUMBERS)
@pytest.mark.parametrize("p", [0.01, 0.3])
def test_a_generator_decides_and_the_global_stream_is_left_alone(numel, p):
    before = torch.get_rng_state()
    one, same, other = (bernoulli_int16(numel, p, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("numel", NUMBERS)
@pytest.mark.parametrize("p", [0.01, 0.3])
def test_without_one_the_global_stream_decides(numel, p):
    def drawn(seed):
        torch.manual_seed(seed)
        return bernoulli_int16(numel, p)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert not torch.equal(bernoulli_int16(numel, p), bernoulli_int16(numel, p))


@pytest.mark.parametrize("p", [1e-4, 1 - 1e-4])
def test_distances_that_dont_reach_the_end_are_followed_by_more(p, monkeypatch):
    """With as few at a time as it takes, the loop runs often."""
    monkeypatch.setattr(bernoulli, "_nearly_always_enough", lambda expected: int(expected / 5))
    drawn = bernoulli_int16(MANY, p).double()
    assert abs(drawn.mean().item() - p) <= 4 * (p * (1 - p) / MANY) ** 0.5
    quarters = (drawn == (p < 0.5)).view(4, -1).sum(1)
    assert quarters.min() > 0


def test_few_are_drawn_as_torch_does():
    ours, theirs = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    expected = torch.empty(1000).bernoulli_(0.3, generator=theirs)
    assert torch.equal(bernoulli_int16(1000, 0.3, ours).float(), expected)


def test_where_torch_draws_in_threads_it_is_left_to_it(monkeypatch):
    monkeypatch.setattr(bernoulli, "_draws_in_threads", lambda: True)
    assert not is_faster(MANY, 0.5)
    ours, theirs = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    expected = torch.empty(2**15, dtype=torch.int16).bernoulli_(0.3, generator=theirs)
    assert torch.equal(bernoulli_int16(2**15, 0.3, ours), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("numel", [2**18, MANY])  # by torch's and by NumPy's generator
def test_signs_are_fair_and_independent_of_one_another(dtype, numel):
    signs = torch.copysign(torch.ones(()), random_signs(numel, dtype).float()).double()
    bits = 8 * dtype.itemsize
    words = len(signs) // bits
    assert signs.shape == (numel,)
    for part in (signs, *signs[: bits * words].view(bits, words)):  # all, and those made of one bit
        assert abs(part.sum()) <= 4.5 * math.sqrt(len(part))
    for distance in (1, 2, 3, 7, words, 2 * words, 64):
        assert abs((signs[distance:] * signs[:-distance]).sum()) <= 4.5 * math.sqrt(numel)


def test_signs_of_a_size_that_fills_no_word_come_from_the_generator_given():
    drawn = [random_signs(67, torch.float32, torch.Generator().manual_seed(seed)).signbit() for seed in (1, 1, 2)]
    assert drawn[0].shape == (67,)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
