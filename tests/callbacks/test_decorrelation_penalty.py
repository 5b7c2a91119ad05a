"""A penalty on features that vary together."""

import pytest
import torch
from torch import nn

from lightning_reg.callbacks import DecorrelationPenalty
from lightning_reg.functional.loss.output_penalties import decorrelation_penalty
from lightning_reg.settings import SettingError
from tests.conformance.problem import SomebodysModule, Textbook, loader
from tests.conformance.technique import Technique
from tests.helpers import quiet_trainer


def covariances(rows):
    """Half the sum of squared covariances, feature by feature."""
    total = 0.0
    for i in range(rows.shape[1]):
        for j in range(rows.shape[1]):
            if i != j:
                one, other = rows[:, i] - rows[:, i].mean(), rows[:, j] - rows[:, j].mean()
                total = total + (one * other).mean() ** 2
    return total / 2


CONFORMANCE = {
    "DecorrelationPenalty": Technique(
        lambda: DecorrelationPenalty(weight=0.3),
        lambda: DecorrelationPenalty(weight=0.0),
        Textbook(term=lambda model, *_: 0.3 * covariances(model.seen.float())),
    ),
}


def rows(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def of_strength_one(activations):
    return decorrelation_penalty(activations, 1.0)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)], ids=["more samples", "more features"])
def test_value_and_gradient_are_those_of_the_formula_in_float64(shape):
    values = rows(*shape).requires_grad_()
    torch.testing.assert_close(of_strength_one(values), covariances(values))
    (gradient,) = torch.autograd.grad(of_strength_one(values), values)
    (expected,) = torch.autograd.grad(covariances(values), values)
    torch.testing.assert_close(gradient, expected)
    assert torch.autograd.gradcheck(of_strength_one, values)


def test_agrees_with_torchs_covariance():
    values = rows(7, 5)
    covariance = values.T.cov(correction=0)
    torch.testing.assert_close(of_strength_one(values), (covariance - covariance.diag().diag()).square().sum() / 2)


def test_positions_and_time_steps_are_samples():
    maps, sequences = rows(2, 3, 4, 5), rows(2, 6, 3)
    torch.testing.assert_close(of_strength_one(maps), covariances(maps.movedim(1, 3).reshape(-1, 3)))
    torch.testing.assert_close(of_strength_one(sequences), covariances(sequences.reshape(-1, 3)))


def test_a_feature_of_its_own_is_free():
    assert of_strength_one(rows(8, 1)).abs() < 8 * torch.finfo(torch.float64).eps  # the rounding of two sums


def test_sixteen_bits_are_computed_in_thirty_two():
    values = rows(8, 4).bfloat16()
    torch.testing.assert_close(of_strength_one(values), covariances(values.float()))


def test_a_module_without_features_is_refused():
    class Sums(nn.Module):
        def forward(self, inputs):
            return inputs.sum(1)

    class OfSums(SomebodysModule):
        def training_step(self, batch, batch_idx):
            self.network.unused(batch[0])
            return super().training_step(batch, batch_idx)

    def with_sums(model):
        model.unused = Sums()

    with pytest.raises(SettingError, match=r"activations must have samples and features, but have shape \(8,\)"):
        quiet_trainer(DecorrelationPenalty(weight=0.1, include=("network.unused",))).fit(
            OfSums(prepare=with_sums), loader(), loader()
        )


def test_bad_settings_are_refused_at_once():
    with pytest.raises(SettingError, match=r"weight must be in \[0, ∞\), but is -1"):
        DecorrelationPenalty(weight=-1)
