"""A penalty on the logits' Jacobian by the inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_reg.callbacks import JacobianPenalty
from lightning_reg.core.streams import random_stream
from lightning_reg.functional.loss.input_penalties import jacobian_penalty, random_directions, unit_directions
from lightning_reg.settings import SettingError
from tests.conformance.problem import SomebodysModule, Textbook, loader
from tests.conformance.technique import Technique
from tests.helpers import quiet_trainer


@torch.no_grad()
def away_from_the_border(model):
    """The penalty's gradient jumps where a ReLU's input changes its sign, which in 16 bits is a matter of rounding."""
    model.hidden.bias.fill_(3.0)


def differentiable(model, inputs, labels):
    return inputs.clone().requires_grad_(), lambda logits: F.cross_entropy(logits, labels)


def term(model, inputs, logits):
    """λ/2 times the mean of ‖vᵀJ‖², v drawn from a sphere of radius √C.

    One backward pass for all samples, none of which sees another: in 16 bits each would be rounded by itself.
    """
    stream = random_stream(0, model.rank, model.epoch, model.batch, "JacobianPenalty", 0)
    drawn = torch.randn((2, *logits.shape), generator=torch.Generator().manual_seed(stream.getrandbits(63)))
    norms = []
    for directions in drawn:
        along = [(row * (3**0.5 * v / v.norm())).sum() for row, v in zip(logits, directions, strict=True)]
        (gradient,) = torch.autograd.grad(torch.stack(along).sum(), inputs, create_graph=True)
        norms += [(row**2).sum() for row in gradient]
    return 0.1 / 2 * torch.stack(norms).mean()


CONFORMANCE = {
    "JacobianPenalty": Technique(
        lambda: JacobianPenalty(weight=0.1, projections=2),
        lambda: JacobianPenalty(weight=0.0),
        Textbook(term=term, mix=differentiable),
        prepare=away_from_the_border,
        compiles=False,
    ),
}


def problem():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return network, torch.randn(5, 4, dtype=torch.float64).requires_grad_()


def frobenius(network, inputs):
    """By torch's own Jacobian, of one sample after the other."""
    jacobians = [torch.autograd.functional.jacobian(network, row, create_graph=True) for row in inputs.detach()]
    return torch.stack([jacobian.square().sum() for jacobian in jacobians]).mean() / 2


def test_value_and_gradient_are_those_of_torchs_jacobian_in_float64():
    network, inputs = problem()
    outputs = network(inputs)
    value = jacobian_penalty(outputs, inputs, 0.3, directions=unit_directions(outputs))
    expected = 0.3 * frobenius(network, inputs)
    torch.testing.assert_close(value, expected)
    weight = network[0].weight
    torch.testing.assert_close(torch.autograd.grad(value, weight), torch.autograd.grad(expected, weight))


def test_random_projections_estimate_it_without_bias():
    network, inputs = problem()
    outputs = network(inputs)
    generator = torch.Generator().manual_seed(1)
    directions = random_directions(outputs, 400, generator=generator)
    values = torch.stack(
        [jacobian_penalty(outputs, inputs, 1.0, directions=one.unsqueeze(0)).detach() for one in directions]
    )
    error = values.std() / len(values) ** 0.5
    assert (values.mean() - frobenius(network, inputs)).abs() < 4 * error


def fit(callback, module=None, **settings):
    trainer = quiet_trainer(callback, log_every_n_steps=1, limit_train_batches=1, **settings)
    trainer.fit(module or SomebodysModule(), loader(), loader())
    return trainer.callback_metrics


def test_all_classes_leave_nothing_to_chance():
    one, other = (
        fit(JacobianPenalty(weight=0.1, projections=None)),
        fit(JacobianPenalty(weight=0.1, projections=None, seed=5)),
    )
    assert one["penalty/jacobian"] == other["penalty/jacobian"] > 0


class WithIgnored(SomebodysModule):
    """Ignores the labels of class 0."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]), batch[1], ignore_index=0)


def test_samples_that_are_ignored_add_nothing():
    everything, some = (
        fit(JacobianPenalty(weight=0.1, projections=None), module) for module in (SomebodysModule(), WithIgnored())
    )
    assert 0 < some["penalty/jacobian"] < everything["penalty/jacobian"]


class ByHand(SomebodysModule):
    """Has a loss of its own."""

    def training_step(self, batch, batch_idx):
        return self.network(batch[0]).square().mean()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (ByHand(), "the training step doesn't call cross_entropy, whose input JacobianPenalty"),
        (SomebodysModule(compiled=True), "the module must not be compiled with JacobianPenalty"),
    ],
)
def test_what_has_no_jacobian_is_refused(module, message):
    with pytest.raises(SettingError, match=message):
        fit(JacobianPenalty(weight=0.1), module)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, r"weight must be in \[0, ∞\), but is -1.0"),
        ({"weight": 0.1, "projections": 0}, "projections must be"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(SettingError, match=message):
        JacobianPenalty(**settings)
