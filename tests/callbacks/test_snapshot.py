"""Callbacks load checkpoints as the fit was asked to, and run nothing that lies in one."""

import os
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import BestWeightsEarlyStopping
from lightning_reg.callbacks.run.snapshot import chosen_weights_only, weights_of_checkpoint
from tests.helpers import quiet_trainer


class Payload:
    def __reduce__(self):
        return os.system, ("touch executed",)


class More:
    """Something in hyperparameters that is no plain value."""


class Module(LightningModule):
    def __init__(self, more=None):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", torch.tensor(float(self.current_epoch)))  # best in the first epoch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches():
    return DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=2)


def fit(callbacks, module=None, **settings):
    trainer = quiet_trainer(max_epochs=2, callbacks=callbacks, enable_checkpointing=True, num_sanity_val_steps=0)
    trainer.fit(module or Module(), batches(), batches(), **settings)
    return trainer


@pytest.mark.parametrize(("said", "chosen"), [(None, True), (True, True), (False, False)])
def test_choice_is_that_of_the_fit(said, chosen):
    seen = []

    class Asks(Callback):
        def on_train_end(self, trainer, pl_module):
            seen.append(chosen_weights_only(trainer))

    fit([Asks()], weights_only=said)
    assert seen == [chosen]


@pytest.mark.parametrize("weights_only", [None, False])
def test_checkpoint_with_more_than_data_is_loaded_only_where_the_fit_says_so(weights_only):
    torch.save({"epoch": 0, "global_step": 2, "state_dict": {"a": torch.ones(1)}, "more": Payload()}, "theirs.ckpt")
    keeps, found = ModelCheckpoint("kept", monitor="val/loss"), []

    class Asks(Callback):
        def on_train_end(self, trainer, pl_module):
            keeps.best_model_path, keeps.best_k_models = "theirs.ckpt", {}
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                found.append(weights_of_checkpoint(trainer, monitor="val/loss", mode="min", epoch=0, step=2))
            found.append([str(warning.message) for warning in told])

    fit([Asks(), keeps], weights_only=weights_only)
    assert Path("executed").exists() is (weights_only is False)
    if weights_only is False:
        assert found[0]["a"] == 1
        assert found[1] == []
    else:
        assert found[0] is None
        assert "theirs.ckpt can't be loaded with weights_only=True" in found[1][0]


def test_first_checkpoint_that_cannot_be_loaded_is_told_and_the_copy_in_memory_is_used():
    module, stops = Module(More()), BestWeightsEarlyStopping("val/loss", patience=9)
    first = []

    class Keeps(Callback):
        def on_validation_end(self, trainer, pl_module):
            first.append(pl_module.layer.weight.detach().clone())

    with pytest.warns(UserWarning, match=r"holds more than data, .*More, and can be loaded with weights_only=False"):
        fit([stops, Keeps(), ModelCheckpoint("kept", monitor="val/loss")], module)
    assert len(first) == 2
    torch.testing.assert_close(module.layer.weight.detach(), first[0], rtol=0, atol=0)
    assert not torch.equal(first[0], first[1])


def test_buffer_that_was_made_in_inference_mode_is_restored():
    class Statistics(Module):
        def __init__(self):
            super().__init__()
            with torch.inference_mode():
                self.register_buffer("mean", torch.tensor([0.1, 0.2]))

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            with torch.inference_mode():
                self.mean += batch_idx == 0

    module = Statistics()
    fit([BestWeightsEarlyStopping("val/loss", patience=9)], module)  # the first epoch is the best
    torch.testing.assert_close(module.mean, torch.tensor([1.1, 1.2]))
