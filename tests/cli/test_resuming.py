"""A run goes on from its own checkpoint, with its schedule; that techniques do is seen in tests/conformance."""

import warnings
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from tests.conformance.problem import SomebodysModule, loader
from tests.conformance.resuming import ComparesFirst
from tests.helpers import quiet_trainer


def trainer_of(folder, *callbacks):
    """A trainer of two epochs that keeps a checkpoint of each."""
    saves = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    return quiet_trainer(*callbacks, saves, max_epochs=2, enable_checkpointing=True)


def first_epoch(folder, module):
    trainer_of(folder).fit(module, loader(), loader())
    return str(folder / "epoch=0.ckpt")


def steps_after(path, module):
    trainer = trainer_of(Path(path).parent, ComparesFirst(path))
    trainer.fit(module, loader(), loader(), ckpt_path=path)
    return trainer.global_step


class Scheduled(SomebodysModule):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.make(optimizer), "monitor": "val_loss"}}


def cosine(optimizer):
    return CosineAnnealingLR(optimizer, 3)


def warmed(optimizer):
    return SequentialLR(optimizer, [LinearLR(optimizer), cosine(optimizer)], milestones=[1])


class Waits(LRScheduler):
    """Somebody's, which forgets how long it has waited."""

    def __init__(self, optimizer):
        self.left = 5
        super().__init__(optimizer)

    def get_lr(self):
        if self.last_epoch:
            self.left = None
        return [group["lr"] for group in self.optimizer.param_groups]


@pytest.mark.parametrize("make", [cosine, ReduceLROnPlateau, warmed, Waits])
def test_own_state_of_a_schedule_is_taken(make, tmp_path):
    path = first_epoch(tmp_path, Scheduled(make))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*learning rate schedules")
        assert steps_after(path, Scheduled(make)) == 12


def test_schedule_that_is_left_out_is_warned_of(tmp_path):
    path = first_epoch(tmp_path, Scheduled(cosine))
    with pytest.warns(UserWarning, match="the states of 1 learning rate schedules, and this run has 0"):
        steps_after(path, SomebodysModule())
