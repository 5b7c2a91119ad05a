"""The order between backward and step, and letting go."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_reg.callbacks import (
    GradientCentralization,
    GradientClipping,
    GradientMonitor,
    GradientNoise,
    L1Penalty,
    L2Penalty,
)
from lightning_reg.settings import SettingError
from tests.conformance.problem import Setting, SomebodysModule, loader
from tests.helpers import quiet_trainer


class Theirs(Callback):
    pass


def test_the_list_of_callbacks_stays_the_users(tmp_path):
    callbacks = [GradientClipping(), Theirs(), GradientMonitor(), L2Penalty(weight=0.1), ModelCheckpoint(tmp_path)]
    trainer = quiet_trainer(*callbacks, enable_checkpointing=True)
    before = list(trainer.callbacks)
    trainer.fit(SomebodysModule(), loader(), loader())
    assert all(one is other for one, other in zip(trainer.callbacks, before, strict=True))


def test_order_of_the_list_makes_no_difference():
    def weights(order):
        callbacks = [GradientClipping(max_norm=0.1), GradientNoise(seed=1), L2Penalty(weight=1.0)]
        module = SomebodysModule()
        quiet_trainer(*[callbacks[index] for index in order]).fit(module, loader(), loader())
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    assert torch.equal(weights([0, 1, 2]), weights([2, 0, 1]))


@pytest.mark.parametrize(
    "callback",
    [L1Penalty(weight=0.1), GradientClipping(), GradientMonitor(), GradientNoise(), GradientCentralization()],
)
def test_lbfgs_is_refused_with_a_remedy(callback):
    class Searches(SomebodysModule):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(SettingError, match=f"LBFGS with {type(callback).__name__}.*first-order optimizer"):
        quiet_trainer(callback).fit(Searches(), loader(), loader())


def test_a_second_fit_of_the_same_callbacks_is_like_the_first():
    callbacks = [GradientClipping(algorithm="percentile"), GradientMonitor(), L1Penalty(weight=0.1, proximal=True)]

    def weights():
        module = SomebodysModule()
        Setting().trainer(callbacks).fit(module, loader(), loader())
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    assert torch.equal(weights(), weights())


def test_a_state_that_a_technique_has_not_written_is_refused_by_name():
    class Restored(GradientClipping):
        def setup(self, trainer, pl_module, stage):
            super().setup(trainer, pl_module, stage)
            self.load_state_dict({"0": {}})

    with pytest.raises(SettingError, match=r"must hold a state of Restored that it has written, but .*TypeError"):
        quiet_trainer(Restored(algorithm="percentile")).fit(SomebodysModule(), loader(), loader())
