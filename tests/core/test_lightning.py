"""The private parts of Lightning and torch that the library leans on are where it looks for them.

A failure here says what a new version has moved; `core/lightning.py` is the one file to change.
"""

import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelPruning
from torch.amp.grad_scaler import OptState
from torch.utils.data import SubsetRandomSampler

from lightning_reg.core import lightning as door
from lightning_reg.settings import SettingError
from tests.conformance.problem import Setting, SomebodysModule, loader
from tests.helpers import quiet_trainer


class Asks(Callback):
    """What the door says in each batch."""

    def __init__(self):
        self.logs, self.steps, self.ends, self.scales, self.unscaled = [], [], [], [], []

    def on_before_backward(self, trainer, pl_module, loss):
        self.unscaled.append(door.unscaled_loss(trainer, loss).item())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        scale = door.gradient_scale(trainer, optimizer)
        self.scales.append(None if scale is None else scale.item())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.logs.append(door.logs_now(trainer))
        self.ends.append(door.ends_a_step(trainer))
        self.steps.append(door.step_number(trainer))


def test_where_training_stands():
    asks = Asks()
    trainer = quiet_trainer(asks, log_every_n_steps=2, accumulate_grad_batches=2, max_epochs=1)
    trainer.fit(SomebodysModule(), loader(), loader())
    assert asks.ends == [False, True] * 3
    assert asks.steps == [1, 1, 2, 2, 3, 3]
    assert asks.logs == [False, False, True, True, False, False]


@pytest.mark.parametrize(("fused", "scales"), [(True, [1024.0] * 6), (False, [None] * 6)])
def test_the_scale_is_seen_where_gradients_still_carry_it(fused, scales):
    asks, setting = Asks(), Setting("16-mixed", fused=fused)
    setting.trainer([asks], max_epochs=1).fit(setting.module(), loader(), loader())
    assert asks.scales == scales
    assert max(asks.unscaled) < 10  # of a cross entropy over three classes


def test_what_is_private_is_there():
    assert OptState.READY.name == "READY"
    assert hasattr(torch.amp.GradScaler("cpu"), "_per_optimizer_states")
    assert hasattr(
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, fused=True), "_step_supports_amp_scaling"
    )


def test_the_sampler_that_is_distributed_is_found():
    sampler = SubsetRandomSampler([3, 4])
    assert door.undistributed(DistributedSamplerWrapper(sampler, num_replicas=2, rank=0)) is sampler
    assert door.undistributed(sampler) is sampler


def test_what_will_be_pruned_is_known_at_setup():
    module = SomebodysModule()
    pruning = ModelPruning("l1_unstructured")
    trainer = quiet_trainer(pruning)
    assert door.pruned_weights(trainer) == []
    pruning.setup(trainer, module, "fit")
    assert (module.network.first, "weight") in door.pruned_weights(trainer)


def test_who_overrides_a_hook():
    class Looks(SomebodysModule):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    assert door.is_overridden(Looks(), "configure_gradient_clipping")
    assert not door.is_overridden(SomebodysModule(), "configure_gradient_clipping")
    assert not door.is_overridden(LightningModule(), "configure_model")


def test_an_old_lightning_is_refused(monkeypatch):
    monkeypatch.setattr("lightning.__version__", "2.5.6")
    with pytest.raises(
        SettingError, match=r"lightning must be at least 2\.6 with lightning_reg's callbacks, but is 2\.5\.6"
    ):
        door.check_version(quiet_trainer())


def test_a_class_stands_for_that_of_either_package():
    assert EarlyStopping in door.twins(EarlyStopping)
    assert door.package_of(quiet_trainer()) == "lightning"
    assert door.twin(EarlyStopping, "lightning") is EarlyStopping
