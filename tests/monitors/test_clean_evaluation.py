"""What is compared of training and validation data, and that it is said where nothing is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchmetrics import CosineSimilarity, SumMetric

from lightning_reg.callbacks import GeneralizationGap
from tests.monitors.gap import Reduces, Somebodys, fit, samples


class CountsInObjects(Somebodys):
    def __init__(self):
        super().__init__()
        self.sums = nn.ModuleDict({"total": SumMetric(), "alike": CosineSimilarity(reduction="sum")})
        self.mean = CosineSimilarity(reduction="mean")

    def validation_step(self, batch, batch_idx):
        logits, labels = self.net(batch[0]), F.one_hot(batch[1], 3).float()
        self.sums["total"].update(logits.square())
        for metric in (self.sums["alike"], self.mean):
            metric.update(logits, labels)
        self.log_dict({f"val_{name}": metric for name, metric in {**self.sums, "mean": self.mean}.items()})

    def on_validation_epoch_end(self):
        pass


@pytest.mark.parametrize("equally_many", [True, False])
def test_objects_that_add_up_are_compared_where_there_are_equally_many(equally_many):
    _, trainer = fit(GeneralizationGap(max_samples=30 if equally_many else None), module=CountsInObjects())
    logged = trainer.callback_metrics
    assert "gap/mean" in logged
    assert ("gap/total" in logged, "gap/alike" in logged) == (equally_many, equally_many)
    for name in ["mean", *(["total", "alike"] if equally_many else [])]:
        assert logged[f"gap/val_{name}"] == pytest.approx(logged[f"val_{name}"].item(), rel=1e-5)


class LogsTwoLosses(Reduces):
    def validation_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log_dict({"train_loss": loss + 2, "loss": loss + 1, "val_loss": loss})


def test_metrics_that_only_their_split_tells_apart_are_not_one():
    _, trainer = fit(GeneralizationGap(verbose=False), module=LogsTwoLosses())
    logged = trainer.callback_metrics
    for name, measured in {"val_loss": "loss", "loss": "loss_2", "train_loss": "loss_3"}.items():
        assert logged[f"gap/val_{measured}"] == pytest.approx(logged[name].item(), rel=1e-5)


class SaysHowMany(Reduces):
    def validation_step(self, batch, batch_idx):
        losses = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("val_loss", losses, batch_size=len(batch[1]))


def test_a_step_that_says_how_many_samples_it_has_is_not_asked_for_it():
    """Of the parts of the batch one is of another length, and a warning is an error."""

    def joined(parts):
        return *map(torch.stack, zip(*parts, strict=True)), torch.zeros(3)

    data = [DataLoader(samples(count, seed=count), 10, collate_fn=joined) for count in (40, 30)]
    gap = GeneralizationGap()
    module, trainer = fit(
        gap, module=SaysHowMany(), data=dict(zip(("train_dataloaders", "val_dataloaders"), data, strict=True))
    )
    assert gap.last_result.samples == {"train": 40, "validation": 30}
    inputs, labels = samples(40, seed=40).tensors
    with torch.no_grad():
        expected = F.cross_entropy(module.eval().net(inputs), labels)
    assert trainer.callback_metrics["gap/train_loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def overlapping(both):
    whole = samples(40)
    return Subset(whole, range(20 + both)), Subset(Subset(whole, range(10, 40)), range(10, 30))


@pytest.mark.parametrize("both", [0, 7, 20])
def test_samples_of_both_loaders_are_warned_of(both, recwarn):
    train, val = overlapping(both)
    fit(
        GeneralizationGap(verbose=False),
        data={"train_dataloaders": DataLoader(train, 10), "val_dataloaders": DataLoader(val, 10)},
    )
    said = [str(warning.message) for warning in recwarn if "as training and as validation data" in str(warning.message)]
    assert len(said) == (both > 0)
    assert all(f"measures {both} samples" in line for line in said)


class Stays(Somebodys):
    """Learns nothing, and so underfits."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("both", [0, 7, 20])
@pytest.mark.filterwarnings("ignore:GeneralizationGap measures .* samples as training and as validation data")
def test_no_diagnosis_is_given_where_validation_measures_training_samples_alone(both, capsys):
    train, val = overlapping(both)
    gap = GeneralizationGap()
    data = {"train_dataloaders": DataLoader(train, 10), "val_dataloaders": DataLoader(val, 10)}
    fit(gap, module=Stays(), data=data)
    said = " ".join(capsys.readouterr().out.split())
    is_told = "Nothing can be said of over- or underfitting: validation measures training samples alone." in said
    assert is_told == (both == 20)
    assert ("underfitting from the start" in said) == (both < 20)
    assert ("underfitting" in [signal.name for signal in gap.signals]) == (both < 20)


class OnlyCounts(Reduces):
    def validation_step(self, batch, batch_idx):
        self.log("val_wrong", (self.net(batch[0]).argmax(1) != batch[1]).sum().float(), reduce_fx="sum")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"check_val_every_n_epoch": 3, "max_epochs": 5},
            "measured nothing: every_n_epochs is 2, but no epoch that is a multiple of it had a validation",
        ),
        ({"max_epochs": 1}, "has no effect: every_n_epochs is 2, but training is planned to end after 1 epoch"),
        (
            {"max_epochs": 2, "module": OnlyCounts},
            "measured nothing: validation_step logs nothing that can be compared",
        ),
        ({"check_val_every_n_epoch": 3, "max_epochs": 6}, None),
    ],
    ids=["never together", "too short", "sums", "together"],
)
def test_what_measures_nothing_says_so_once(settings, said, recwarn):
    gap = GeneralizationGap(every_n_epochs=2, verbose=False)
    make = settings.get("module", Somebodys)
    fit(gap, **{"num_sanity_val_steps": 0, **settings, "module": make()})
    found = [str(warning.message) for warning in recwarn if "GeneralizationGap" in str(warning.message)]
    assert len(found) == (said is not None) == (not gap.curves.epochs or not gap.curves.train)
    assert said is None or said in found[0]
