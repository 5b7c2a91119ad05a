"""DropBlock drops what it is asked to, for every size of map and block."""

import itertools

import pytest
import torch

from lightning_reg.functional.forward.drop_block import drop_block, seed_rate

MAPS = [
    (1,),
    (2,),
    (5,),
    (56,),
    (1, 1),
    (3, 7),
    (7, 7),
    (14, 14),
    (56, 56),
    (1, 1, 1),
    (2, 5, 3),
    (7, 7, 7),
    (4, 14, 14),
]
BLOCKS = [1, 2, 3, 4, 5, 6, 7, 8, 9]
RATES = [0.05, 0.1, 0.25, 0.5]


def blocks_over(sizes, block_size):
    """(positions, seeds): which seeds drop which positions, by looking at every pair."""
    positions = list(itertools.product(*(range(size) for size in sizes)))
    before, behind = (block_size - 1) // 2, block_size // 2
    return torch.tensor(
        [
            [all(s - before <= x <= s + behind for x, s in zip(position, seed, strict=True)) for seed in positions]
            for position in positions
        ]
    )


@pytest.mark.parametrize("sizes", [sizes for sizes in MAPS if torch.tensor(sizes).prod() <= 350], ids=str)
@pytest.mark.parametrize("block_size", BLOCKS)
def test_rate_of_seeds_is_the_one_for_which_the_expected_share_is_p(sizes, block_size):
    covering = blocks_over(sizes, block_size).double().sum(1)
    for p in RATES:
        gamma = seed_rate(sizes, block_size, p)
        dropped = (1 - (1 - gamma) ** covering).mean().item()
        assert dropped == pytest.approx(p, abs=1e-12)


@pytest.mark.parametrize("sizes", MAPS, ids=str)
@pytest.mark.parametrize("block_size", BLOCKS)
def test_realized_share_is_p_within_four_standard_errors(sizes, block_size):
    """Units of one map are dropped together, maps are independent: the spread between maps gives the error."""
    torch.manual_seed(block_size)
    count = max(200, 200_000 // int(torch.tensor(sizes).prod()))
    for p in RATES:
        gamma = seed_rate(sizes, block_size, p)
        shape = (count, 1, *sizes)
        out = drop_block(torch.ones(shape), torch.rand(shape) < gamma, block_size, gamma)
        shares = (out == 0).double().flatten(1).mean(1)
        assert abs(shares.mean() - p) <= 4 * shares.std() / count**0.5


@pytest.mark.parametrize("sizes", [(6,), (5, 4), (3, 4, 2)], ids=str)
@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 7])
def test_each_seed_drops_its_block_and_survivors_keep_their_expectation(sizes, block_size):
    """The expectation over all seeds there can be, weighted by their probability, is the input, unit by unit."""
    over = blocks_over(sizes, block_size)
    gamma = 0.3
    for seed in range(over.shape[1]):
        seeds = torch.zeros(over.shape[1], dtype=torch.bool)
        seeds[seed] = True
        out = drop_block(torch.ones(1, 1, *sizes, dtype=torch.float64), seeds.view(1, 1, *sizes), block_size, gamma)
        kept_with = (1 - gamma) ** over.double().sum(1)
        expected = torch.where(over[:, seed], 0.0, 1 / kept_with)
        torch.testing.assert_close(out.flatten(), expected, rtol=1e-12, atol=0)


def test_expectation_over_all_draws_is_the_input():
    gamma, block_size, size = 0.3, 2, 4
    inputs = torch.randn(1, 1, size, dtype=torch.float64)
    total = torch.zeros_like(inputs)
    for draw in itertools.product([False, True], repeat=size):
        probability = gamma ** sum(draw) * (1 - gamma) ** (size - sum(draw))
        total += probability * drop_block(inputs, torch.tensor(draw).view(1, 1, size), block_size, gamma)
    torch.testing.assert_close(total, inputs, rtol=1e-12, atol=0)


def test_gradient_is_that_of_a_mask():
    seeds = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.1
    inputs = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda inputs: drop_block(inputs, seeds, 3, 0.1), inputs)


def test_channels_may_share_their_blocks():
    seeds = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    seeds[..., 2, 2] = True
    out = drop_block(torch.ones(1, 4, 5, 5), seeds, 3, 0.01)
    assert ((out == 0).sum((2, 3)) == 9).all()
