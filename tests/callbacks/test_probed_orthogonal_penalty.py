"""The orthogonal penalty that is estimated from random vectors, in a fit."""

import pytest
import torch
import torch.nn.functional as F

from lightning_reg.callbacks import OrthogonalPenalty
from lightning_reg.core.streams import random_stream
from lightning_reg.settings import SettingError
from tests.conformance.problem import LEARNING_RATE, SomebodysModule, loader, network, weights_of
from tests.helpers import quiet_trainer

STEPS = 3


def vectors_of(step, name, matrix):
    """As the card has it: what is drawn depends on the seed, the step and the parameter alone."""
    generator = torch.Generator().manual_seed(random_stream(3, step, "orthogonal", name).getrandbits(63))
    return torch.randn(min(matrix.shape), 4, generator=generator)


def by_hand():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    for step, (inputs, labels) in zip(range(STEPS), loader(), strict=False):
        loss = F.cross_entropy(model(inputs), labels)
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and weight.requires_grad:
                gram = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
                vectors = vectors_of(step, f"network.{name}", weight)
                excess = (gram - torch.eye(len(gram))) @ vectors
                loss = loss + 0.02 * excess.square().sum() / 4
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weights_of(model)


def test_a_fit_is_the_loop_by_hand_and_logs_the_estimate():
    module = SomebodysModule()
    trainer = quiet_trainer(OrthogonalPenalty(weight=0.02, probes=4, seed=3), max_steps=STEPS, log_every_n_steps=1)
    trainer.fit(module, loader(), loader())
    for found, expected in zip(weights_of(module), by_hand(), strict=True):
        torch.testing.assert_close(found, expected)
    assert trainer.callback_metrics["penalty/orthogonal"] > 0


@pytest.mark.parametrize(("name", "value"), [("probes", 0), ("seed", -1)])
def test_bad_settings_are_refused_at_once(name, value):
    with pytest.raises(SettingError, match=f"{name} must be a whole number of at least"):
        OrthogonalPenalty(weight=0.1, **{name: value})
