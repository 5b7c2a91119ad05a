"""What the curves of both sides show, in words, marks and on the terminal."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import GeneralizationGap
from lightning_reg.monitors import generalization_gap
from tests.monitors.gap import Somebodys, fit


class Memorizes(Somebodys):
    """Labels are noise, so that there is nothing to learn but the training samples."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 256), nn.ReLU(), nn.Linear(256, 3))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def noise(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 4, generator=generator), torch.randint(3, (count,), generator=generator))


def test_signs_of_overfitting_are_seen_and_printed(capsys):
    gap = GeneralizationGap()
    data = {
        "train_dataloaders": DataLoader(noise(40, 1), 20, shuffle=True),
        "val_dataloaders": DataLoader(noise(40, 2), 20),
    }
    fit(gap, module=Memorizes(), data=data, max_epochs=60)
    names = [signal.name for signal in gap.signals]
    assert names == ["overfitting", "memorization", "capacity"]
    overfitting, memorization, _ = gap.signals
    losses = gap.curves.validation["loss"]
    assert overfitting.epoch == losses.index(min(losses)) + 1
    accuracies = gap.curves.train["acc"]
    assert all(accuracy >= 0.99 for accuracy in accuracies[memorization.epoch :])
    assert memorization.epoch == 0 or accuracies[memorization.epoch - 1] < 0.99
    printed = capsys.readouterr().out
    assert "Training and validation data measured alike, on 40 and 40 samples" in printed
    assert f"- overfitting from epoch {overfitting.epoch} on: the validation loss rose" in printed
    assert max(len(line) for line in printed.splitlines()) <= 100


@pytest.mark.parametrize(("last", "mark"), [(2, "stopped, epoch 2"), (3, "end, epoch 3")])
def test_the_end_of_the_curves_says_whether_training_was_stopped(last, mark, tmp_path, monkeypatch):
    class Stops(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == last

    charts = []
    monkeypatch.setattr(generalization_gap, "draw", lambda drawn: charts.extend(drawn) or torch.zeros(1, 1, 3))
    monkeypatch.setattr(generalization_gap, "log_image", lambda *_: None)
    fit(GeneralizationGap(), Stops(), max_epochs=4, logger=TensorBoardLogger(tmp_path), log_every_n_steps=1)
    assert {mark in chart.marks for chart in charts} == {True}


def test_signs_of_underfitting_are_seen(capsys):
    module = Somebodys()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=1e-6)
    gap = GeneralizationGap(verbose=False)
    fit(gap, module=module)
    assert [signal.name for signal in gap.signals] == ["underfitting"]
    assert capsys.readouterr().out == ""
