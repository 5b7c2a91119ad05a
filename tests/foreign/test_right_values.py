"""What comes out where a foreign project and a technique meet, by hand."""

import dataclasses

import pytest
import torch

from lightning_reg.callbacks import ExponentialMovingAverage, L2Penalty, StrengthSchedule
from tests.foreign.fitting import PROJECTS, fit
from tests.foreign.projects.weights import FreezesByTurns

ONE_STEP = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0}


def variant(name, **changes):
    """A project with other fields."""
    return dataclasses.replace(PROJECTS[name], **changes)


@pytest.mark.parametrize("technique", [L2Penalty(weight=0.5), ExponentialMovingAverage(decay=0.5)])
def test_a_layer_that_is_frozen_stays_while_it_is(technique):
    starts, ends = [], []

    class Watched(FreezesByTurns):
        def on_train_epoch_start(self):
            super().on_train_epoch_start()
            starts.append((self.network.first.weight.detach().clone(), self.network.hidden.weight.detach().clone()))

        def on_train_epoch_end(self):
            ends.append((self.network.first.weight.detach().clone(), self.network.hidden.weight.detach().clone()))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    fit(variant("frozen by turns", make=Watched, validation=None), [technique])
    assert ends[0][1].equal(starts[0][1])
    assert ends[1][0].equal(starts[1][0])
    assert not ends[1][1].equal(starts[1][1])


def test_the_penalty_of_complex_weights_is_that_of_their_absolute_values():
    outcome = fit(variant("complex weights", settings=ONE_STEP), [L2Penalty(weight=0.05)])
    torch.manual_seed(0)
    weights = [each.detach() for each in PROJECTS["complex weights"].make().parameters() if each.ndim > 1]
    assert any(weight.is_complex() for weight in weights)
    expected = 0.05 / 2 * sum(weight.abs().square().sum().item() for weight in weights)
    assert outcome.trainer.callback_metrics["penalty/l2"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("unit", ["step"])
def test_a_schedule_ends_with_the_last_step_where_there_are_only_steps(unit):
    outcome = fit(PROJECTS["max_steps alone"], [L2Penalty(weight=0.05, schedule=StrengthSchedule(unit=unit))])
    strengths = [value for _, tag, value in outcome.logged if tag == "schedule/l2"]
    expected = [step / 7 for step in range(8)] if unit == "step" else [0.0] * 4 + [1.0] * 4
    assert strengths == pytest.approx(expected)
