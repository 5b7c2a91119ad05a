"""Whose weights are restored, and when training stops, in the ways that people train."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_reg.attach.snapshot import WeightSnapshot
from lightning_reg.callbacks import BestWeightsEarlyStopping
from lightning_reg.settings import MonitorError, SettingError
from tests.conftest import REPOSITORY
from tests.helpers import quiet_trainer

NAN = float("nan")


class Scripted(LightningModule):
    """Its weight counts steps; its validation losses are given, one a validation, and so is another metric."""

    def __init__(self, losses, others=()):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.losses = losses
        self.others = others
        self.measured = []  # weights that each validation saw

    def training_step(self, batch, batch_idx):
        self.log("train_loss", self.weight.detach() * 0 + 5 - self.current_epoch, on_step=False, on_epoch=True)
        return -self.weight

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.tensor(self.losses[len(self.measured)]))
        if self.others:
            self.log("other", torch.tensor(self.others[len(self.measured)]))
        self.measured.append(self.weight.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(losses, *callbacks, others=(), module=None, steps=1, ckpt_path=None, **settings):
    module = module or Scripted(losses, others)
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    defaults = {"max_epochs": len(losses), "num_sanity_val_steps": 0, "enable_checkpointing": saves}
    trainer = quiet_trainer(*callbacks, **{**defaults, **settings})
    trainer.fit(module, torch.zeros(steps, 1), torch.zeros(1, 1), ckpt_path=ckpt_path)
    return module, trainer


def ema():
    return EMAWeightAveraging(decay=0.5)


class OurKind(Callback):
    """Averages as a callback of ours does: it says so, and puts the average where checkpoints look."""

    averages_weights = True

    def __init__(self):
        self.average = torch.zeros(())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.average.lerp_(pl_module.weight.detach(), 0.5)

    def on_validation_start(self, trainer, pl_module):
        self._exchange(pl_module)

    def on_validation_end(self, trainer, pl_module):
        self._exchange(pl_module)

    def on_train_end(self, trainer, pl_module):
        self._exchange(pl_module)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["state_dict"]["weight"] = self.average

    def _exchange(self, pl_module):
        kept = pl_module.weight.detach().clone()
        pl_module.weight.data.copy_(self.average)
        with torch.inference_mode(False):
            self.average = kept.clone()


class Swapping(OurKind):
    """The same, whose average is in the module until its own hook: what is measured, whoever comes first."""

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        average = pl_module.weight if trainer.validating_now else self.average
        checkpoint["state_dict"]["weight"] = average.detach()


@pytest.mark.parametrize("ema_first", [True, False], ids=["ema first", "stopping first"])
@pytest.mark.parametrize("make", [ema, lambda: WeightAveraging(), OurKind], ids=["ema", "swa", "ours"])
def test_average_that_was_measured_is_restored(make, ema_first, tmp_path):
    losses = [3.0, 1.0, 2.0, 2.5]
    stopping, averaging = BestWeightsEarlyStopping("val_loss", patience=9), make()
    if make is OurKind and not ema_first:
        pytest.importorskip("lightning")  # its hooks run after ours then: see the next test
    pair = (averaging, stopping) if ema_first else (stopping, averaging)
    module, trainer = fit(losses, *pair, ModelCheckpoint(tmp_path, "best", monitor="val_loss"), steps=3)
    assert module.weight.item() == module.measured[1] != module.measured[-1]
    assert torch.load(tmp_path / "best.ckpt")["state_dict"]["weight"].item() == module.weight.item()
    if isinstance(averaging, WeightAveraging):
        trainer.save_checkpoint(tmp_path / "after.ckpt")
        assert torch.load(tmp_path / "after.ckpt")["state_dict"]["weight"].item() == module.weight.item()
