"""Somebody else's module and data, trained by our command line."""

import re
from fractions import Fraction

import pytest
import torch

from lightning_reg.cli import main
from tests.cli.helpers import SHORT

FOREIGN = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule

class Theirs(LightningModule):
    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.num_classes = num_classes
        self.layer = torch.nn.Linear(4, num_classes)
    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()
    def validation_step(self, batch, batch_idx):
        self.log("val_error", self.layer(batch[0]).square().mean())
    def predict_step(self, batch, batch_idx):
        return self.layer(batch[0])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class TheirData(LightningDataModule):
    num_classes = 5
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 4)), batch_size=4)
    def val_dataloader(self):
        return self.train_dataloader()
    def predict_dataloader(self):
        return self.train_dataloader()
"""


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    return [
        "fit",
        "--model",
        "theirs.Theirs",
        "--data",
        "theirs.TheirData",
        "--seed_everything",
        "1",
        "--checkpoint.monitor",
        "val_error",
        *SHORT,
    ]


def test_foreign_module_and_data_train_and_are_measured_as_far_as_they_go(foreign, capsys):
    assert main([*foreign, "--trainer.callbacks+=L2Penalty", "--trainer.callbacks.weight=1e-3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"error +\d\.\d{4}", line) for line in lines)


def test_argument_that_foreign_data_does_not_tell_is_asked_for(foreign, capsys):
    assert main([*foreign, "--model", "MLP"]) == 2
    assert "model.input_shape must be given, because TheirData has no input_shape" in capsys.readouterr().err


def test_predictions_that_are_no_probabilities_are_refused(foreign, capsys):
    assert main(["predict", *foreign[1:]]) == 2
    assert "predict writes class probabilities" in capsys.readouterr().err


def test_default_of_a_foreign_module_is_not_given_by_hand(foreign, capsys):
    assert main(foreign) == 0
    assert main([*foreign, "--model.num_classes", "4"]) == 2
    assert "model.num_classes must be 5, as the data has it" in capsys.readouterr().err


def test_checkpoint_with_hyperparameters_of_any_kind_can_be_used(foreign, tmp_path):
    assert main(foreign) == 0
    (path,) = tmp_path.rglob("best.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"] = {"shape": Fraction(1, 2)}
    torch.save(checkpoint, path)
    assert main(["validate", *foreign[1:], "--ckpt_path", str(path), "--weights_only", "false"]) == 0
