"""Penalties of activations and predictions against the textbook's formula, in float64."""

from itertools import pairwise

import pytest
import torch
from torch.distributions import Categorical

from lightning_reg.functional.loss.output_penalties import (
    activity_penalty,
    confidence_penalty,
    decorrelation_penalty,
    entropy,
    temporal_activity_penalty,
)
from lightning_reg.settings import SettingError


def values(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_activity_is_mean_absolute_plus_mean_square():
    activations = values(4, 5, 3)
    expected = 0.2 * activations.abs().mean() + 0.7 * (activations**2).mean()
    torch.testing.assert_close(activity_penalty(activations, l1=0.2, l2=0.7), expected, rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(lambda a: activity_penalty(a, l1=0.2, l2=0.7), activations)


@pytest.mark.parametrize("time_dim", [0, 1, -2])
def test_temporal_activity_is_the_mean_squared_change(time_dim):
    activations = values(4, 5, 3)
    steps = activations.unbind(time_dim)
    changes = torch.stack([(after - before) ** 2 for before, after in pairwise(steps)])
    torch.testing.assert_close(temporal_activity_penalty(activations, 0.3, time_dim=time_dim), 0.3 * changes.mean())


@pytest.mark.parametrize(
    "penalty",
    [
        lambda a: activity_penalty(a, l1=0.3, l2=0.2),
        lambda a: temporal_activity_penalty(a, 0.3),
        lambda a: decorrelation_penalty(a, 0.3),
    ],
)
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0)])
def test_no_activations_cost_nothing(penalty, shape):
    """As those of an expert that no token was sent to; a mean of none would make the whole loss NaN."""
    activations = torch.zeros(shape, requires_grad=True)
    value = penalty(activations)
    assert value == 0
    assert torch.autograd.grad(value, activations)[0].shape == shape


def test_a_single_time_step_changes_nothing_and_a_missing_dimension_is_an_error():
    assert temporal_activity_penalty(values(4, 1), 0.3) == 0
    with pytest.raises(SettingError, match=r"time_dim must be a dimension of the activations \(4,\), not 1"):
        temporal_activity_penalty(values(4), 0.3)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (4, 5, 3, 2)])
def test_entropy_is_that_of_the_distribution(shape):
    logits = values(*shape)
    last = logits.movedim(1, -1) if logits.ndim > 1 else logits
    torch.testing.assert_close(entropy(logits), Categorical(logits=last).entropy().mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(entropy(logits.log_softmax(1 if logits.ndim > 1 else 0)), entropy(logits))
    assert torch.autograd.gradcheck(lambda x: confidence_penalty(x, 0.3), logits)


def test_masked_classes_add_nothing():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    penalty = confidence_penalty(logits, 1.0)
    penalty.backward()
    torch.testing.assert_close(penalty.detach(), -torch.tensor(2.0).log())
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_outputs_are_summed_in_32(dtype):
    activations = torch.full((100_000,), 1.0, dtype=dtype)
    torch.testing.assert_close(activity_penalty(activations, l1=1.0, l2=1.0), torch.tensor(2.0))
    assert confidence_penalty(activations.view(-1, 2), 1.0).dtype == torch.float32


@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_activity_penalty_has_the_textbooks_gradients_of_first_and_second_order(l1, l2):
    activations = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def penalty(values):
        return activity_penalty(values, l1=l1, l2=l2)

    expected = l1 * activations.abs().mean() + l2 * (activations**2).mean()
    torch.testing.assert_close(penalty(activations), expected)
    torch.autograd.gradcheck(penalty, activations, check_batched_grad=True)
    torch.autograd.gradgradcheck(penalty, activations)
    per_sample = torch.func.vmap(torch.func.grad(penalty))(activations)
    torch.testing.assert_close(per_sample, (l1 * activations.sign() + 2 * l2 * activations) / 5)
