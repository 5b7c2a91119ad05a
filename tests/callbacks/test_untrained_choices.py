"""Techniques whose chosen weights aren't trained say so when training ends."""

import warnings

import pytest
import torch
from lightning.pytorch import Callback

from lightning_reg.callbacks import (
    CautiousWeightDecay,
    GradientCentralization,
    GradientClipping,
    GradientNoise,
    L1Penalty,
    L2Penalty,
    L2SPPenalty,
    MaxNorm,
    Mixout,
)
from tests.conformance.problem import SomebodysModule, loader, trainable
from tests.helpers import quiet_trainer

CHOOSING = {
    "L2Penalty": lambda **chosen: L2Penalty(weight=0.1, **chosen),
    "L1Penalty": lambda **chosen: L1Penalty(weight=0.1, **chosen),
    "L2SPPenalty": lambda **chosen: L2SPPenalty(weight=0.1, **chosen),
    "MaxNorm": lambda **chosen: MaxNorm(max_norm=0.1, **chosen),
    "CautiousWeightDecay": lambda **chosen: CautiousWeightDecay(weight=0.1, **chosen),
    "GradientClipping": lambda **chosen: GradientClipping(max_norm=0.1, **chosen),
    "GradientNoise": GradientNoise,
    "GradientCentralization": GradientCentralization,
}


class GivesWhatTrains(SomebodysModule):
    def configure_optimizers(self):
        return torch.optim.SGD(trainable(self), lr=0.1)


class Unfreezes(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.network.frozen.requires_grad_(trainer.current_epoch == 1)


def told(callback, *others, module=None, **settings):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer = quiet_trainer(callback, *others, **{"max_epochs": 2, **settings})
        trainer.fit(module or SomebodysModule(), loader(), loader())
    return [str(warning.message) for warning in seen if "had no effect" in str(warning.message)]


@pytest.mark.parametrize("kind", [SomebodysModule, GivesWhatTrains])
@pytest.mark.parametrize(("name", "make"), CHOOSING.items(), ids=list(CHOOSING))
def test_frozen_weights_are_named(kind, name, make):
    (message,) = told(make(include=("network.frozen.*",)), module=kind())
    start = f"{name} had no effect on what include selects, because none of it was trained: network.frozen.weight"
    assert message.startswith(start)


@pytest.mark.parametrize("make", CHOOSING.values(), ids=list(CHOOSING))
def test_weights_of_which_any_train_are_not_told_of(make):
    assert not told(make())
    assert not told(make(include=("network.frozen.*",)), Unfreezes(), max_epochs=3)


def test_mixout_of_frozen_layers_says_so():
    (message,) = told(Mixout(include=("network.frozen",)))
    assert message == "Mixout had no effect: the weights of network.frozen are frozen"
    assert not told(Mixout(include=("network.first",)))
