import math
from random import Random

import pytest
import scipy.stats
import torch

from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup


def one_hot(count, classes=3):
    return torch.nn.functional.one_hot(torch.arange(count) % classes, classes).float()


def drawn_weights(mix, count):
    """The weight of the other sample, read off a batch of two: 0 and 1."""
    stream = Random(0)
    return [mix(torch.tensor([[0.0], [1.0]]), one_hot(2), stream=stream)[0][0].item() for _ in range(count)]


def test_inputs_and_targets_are_mixed_alike():
    inputs = one_hot(6)
    mixed, targets = Mixup(alpha=1.0)(inputs, inputs.clone(), stream=Random(1))
    assert torch.equal(mixed, targets)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_minor_weight_is_distributed_as_the_smaller_part_of_a_beta(alpha):
    """Kolmogorov-Smirnov at level 1e-3; P(min(λ, 1-λ) ≤ x) = P(λ ≤ x) + P(λ ≥ 1-x) = 2 P(λ ≤ x) for x ≤ 1/2."""
    beta = scipy.stats.beta(alpha, alpha)
    weights = sorted(drawn_weights(Mixup(alpha=alpha), 2000))
    assert max(weights) <= 0.5
    distances = [
        max(abs(2 * beta.cdf(weight) - index / 2000), abs(2 * beta.cdf(weight) - (index + 1) / 2000))
        for index, weight in enumerate(weights)
    ]
    assert max(distances) < math.sqrt(-math.log(1e-3 / 2) / 2 / 2000)


def test_prob_is_the_share_of_batches_that_are_mixed():
    mixed = sum(weight > 0 for weight in drawn_weights(Mixup(alpha=1.0, prob=0.3), 1000))
    assert abs(mixed - 300) < 4 * math.sqrt(1000 * 0.3 * 0.7)


def test_prob_zero_is_the_identity():
    inputs, targets = torch.randn(4, 2), one_hot(4)
    mixed = Mixup(prob=0.0)(inputs, targets, stream=Random(0))
    assert mixed[0] is inputs
    assert mixed[1] is targets


def test_per_sample_draws_a_weight_for_each():
    targets = Mixup(per_sample=True)(torch.randn(8, 2), one_hot(8, 8), stream=Random(0))[1]
    assert len(targets.max(1).values.unique()) == 8


@pytest.mark.parametrize("count", [1, 3])
def test_odd_batches_and_batches_of_one_pass(count):
    inputs, targets = torch.randn(count, 2), one_hot(count)
    mixed, mixed_targets = Mixup()(inputs, targets, stream=Random(0))
    assert mixed.shape == inputs.shape
    torch.testing.assert_close(mixed_targets.sum(1), torch.ones(count))


def test_global_streams_and_arguments_are_left_alone():
    inputs, targets = torch.randn(4, 2), one_hot(4)
    copies = inputs.clone(), targets.clone()
    state = torch.get_rng_state()
    Mixup()(inputs, targets, stream=Random(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(inputs, copies[0])
    assert torch.equal(targets, copies[1])


@pytest.mark.parametrize("setting", [{"alpha": -1.0}, {"prob": 1.1}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(SettingError, match=f"{next(iter(setting))} must be in"):
        Mixup(**setting)
