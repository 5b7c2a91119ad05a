"""The gap against an evaluation by hand, on somebody else's module and data, and what is left of it: nothing."""

import csv
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from lightning_reg.callbacks import GeneralizationGap
from lightning_reg.cli.results.summary import TrainingPart
from lightning_reg.data import ImageData
from lightning_reg.models import MLP
from lightning_reg.settings import SettingError
from tests.helpers import quiet_trainer
from tests.monitors.gap import Reduces, Somebodys, by_hand, fit, loaders, samples


def test_equals_an_evaluation_by_hand():
    gap = GeneralizationGap(max_samples=None)
    module, trainer = fit(gap)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("gap")}
    train, val = by_hand(module, samples()), by_hand(module, samples(30, seed=2))
    expected = {
        "gap/train_loss": train[0],
        "gap/val_loss": val[0],
        "gap/loss": val[0] - train[0],
        "gap/train_acc": train[1],
        "gap/val_acc": val[1],
        "gap/acc": train[1] - val[1],
    }
    assert {name: logged[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert logged["gap/auc"] == pytest.approx(logged["gap/train_auc"] - logged["gap/val_auc"], abs=1e-6)
    assert set(logged) == {*expected, "gap/auc", "gap/train_auc", "gap/val_auc"}
    assert len(gap.curves.epochs) == 3


def everything(module, trainer, folder):
    rows = list(csv.DictReader((Path(folder) / "metrics.csv").read_text().splitlines()))
    logged = [{name: value for name, value in row.items() if value and not name.startswith("gap")} for row in rows]
    weights = torch.cat([value.flatten().double() for value in module.state_dict().values()]).tolist()
    metrics = {name: v.item() for name, v in trainer.callback_metrics.items() if not name.startswith("gap")}
    streams = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    modes = [submodule.training for submodule in module.modules()]
    return logged, weights, metrics, streams, modes, sorted(vars(module)), module.counted, module.drawn


def test_nothing_else_changes(tmp_path):
    found = []
    for name, callbacks in (("without", []), ("with", [GeneralizationGap(verbose=False)])):
        logger = CSVLogger(tmp_path, name=name, version=0)
        module, trainer = fit(*callbacks, logger=logger, log_every_n_steps=1)
        found.append(everything(module, trainer, tmp_path / name / "version_0"))
    assert found[0] == found[1]
    assert len(found[0][0]) == 3  # rows of validation metrics that were logged


class FailsOnTrainingData(Somebodys):
    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        if self.counted > 30:
            raise ConnectionError


def test_an_exception_in_the_users_validation_leaves_nothing_behind():
    module = FailsOnTrainingData()
    untouched, _ = fit(max_epochs=1)
    with pytest.raises(ConnectionError):
        fit(GeneralizationGap(), module=module, num_sanity_val_steps=0)
    assert sorted(vars(module)) == sorted(vars(untouched))
    assert module.counted == 30
    assert module.seen == 30
    assert [len(submodule._forward_hooks) for submodule in module.modules()] == [0] * len(list(module.modules()))


class Augments(LightningDataModule):
    """Noise in the data set, mixing when batches are collated, more noise on the device."""

    class Noisy(TensorDataset):
        transform = None

        def __getitem__(self, index):
            inputs, labels = super().__getitem__(index)
            return (inputs if self.transform is None else self.transform(inputs)), labels

    def train_dataloader(self):
        noisy = self.Noisy(*samples().tensors)
        noisy.transform = lambda inputs: inputs + 100
        return DataLoader(Subset(noisy, range(70)), 16, shuffle=True, collate_fn=self.mix)

    @staticmethod
    def mix(batch):
        return torch.stack([inputs for inputs, _ in batch]) * 0, torch.stack([label for _, label in batch])

    def val_dataloader(self):
        return DataLoader(self.Noisy(*samples(30, seed=2).tensors), 16)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return (batch[0] + 1000, batch[1]) if self.trainer.training else batch


def test_samples_are_clean():
    module, trainer = fit(GeneralizationGap(max_samples=None), data={"datamodule": Augments()})
    assert trainer.callback_metrics["gap/train_loss"] == pytest.approx(by_hand(module, samples())[0], rel=1e-5)
    assert trainer.train_dataloader.dataset.dataset.transform is not None  # the user's is as it was


def test_our_data_module_gives_clean_images():
    data = ImageData(batch_size=64, train_size=200)
    module = MLP(hidden_sizes=[16], drop_prob=0.5, num_classes=10, input_shape=(1, 8, 8))
    _, trainer = fit(GeneralizationGap(max_samples=None), module=module, data={"datamodule": data})
    metrics = dict(trainer.callback_metrics)
    assert metrics["gap/val_loss"] == pytest.approx(metrics["val/loss"].item(), abs=1e-6)
    assert metrics["gap/val_accuracy"] == pytest.approx(metrics["val/accuracy"].item(), abs=1e-6)
    (expected,) = trainer.validate(module, datamodule=TrainingPart(data), verbose=False)
    assert metrics["gap/train_loss"] == pytest.approx(expected["val/loss"], abs=1e-6)
    assert metrics["gap/train_accuracy"] == pytest.approx(expected["val/accuracy"], abs=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_averaged_weights_are_measured_where_they_are_validated(first):
    gap, average = GeneralizationGap(max_samples=None), EMAWeightAveraging(decay=0.9)
    _, trainer = fit(*([gap, average] if first else [average, gap]))
    metrics = trainer.callback_metrics
    assert metrics["gap/val_acc"] == metrics["val_acc"]
    assert metrics["gap/val_loss"] == pytest.approx(metrics["val_loss"].item(), abs=1e-6)


class Watches(Somebodys):
    """Which samples are validated; the class is nobody's copy."""

    seen_samples: list

    def validation_step(self, batch, batch_idx):
        Watches.seen_samples.append(batch[0][:, 0].tolist())
        super().validation_step(batch, batch_idx)


def test_the_same_few_samples_each_time_and_only_when_due():
    gap = GeneralizationGap(max_samples=20, every_n_epochs=2)
    Watches.seen_samples = []
    _, trainer = fit(gap, module=Watches(), max_epochs=5, num_sanity_val_steps=0)
    assert gap.curves.epochs == [1, 3]
    seen = Watches.seen_samples
    assert [len(record) for record in seen[:10]] == [
        16,
        14,
        16,
        14,
        16,
        4,
        16,
        4,
        16,
        14,
    ]  # validation; measured from 4 on
    assert seen[4:8] == seen[12:16]
    assert gap.last_result.samples == {"train": 20, "validation": 20}
    assert trainer.callback_metrics["gap/train_loss"].isfinite()


class ReturnsOnly(Somebodys):
    def validation_step(self, batch, batch_idx):
        return {"val_loss": F.cross_entropy(self.net(batch[0]), batch[1]), "logits": None}

    def on_validation_epoch_end(self):
        self.log("val_loss", 0.0)


class SaysNothing(ReturnsOnly):
    def validation_step(self, batch):
        self.net(batch[0])


def test_what_is_returned_counts_where_nothing_is_logged():
    module, trainer = fit(GeneralizationGap(max_samples=None), module=ReturnsOnly())
    assert trainer.callback_metrics["gap/train_loss"] == pytest.approx(by_hand(module, samples())[0], abs=1e-5)


class Fetches(Somebodys):
    def validation_step(self, dataloader_iter):
        raise AssertionError


class Stream(IterableDataset):
    def __iter__(self):
        return iter(samples())


class StreamWithLength(Stream):
    def __len__(self):
        return len(samples())


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        pytest.param(SaysNothing, {}, "validation_step must log or return a number", id="says nothing"),
        pytest.param(
            Fetches,
            {"num_sanity_val_steps": 0},
            "validation_step must take a batch with GeneralizationGap, not a dataloader_iter",
            id="fetches its batches",
            marks=pytest.mark.filterwarnings("ignore:.*`dataloader_iter`"),
        ),
        pytest.param(
            Somebodys,
            {"data": {"train_dataloaders": DataLoader(Stream(), 16), "val_dataloaders": loaders()[1]}},
            "training loader must be a DataLoader over a data set with a length .* DataLoader over Stream",
            id="a stream",
        ),
        pytest.param(
            Somebodys,
            {"data": {"train_dataloaders": DataLoader(StreamWithLength(), 16), "val_dataloaders": loaders()[1]}},
            "with a length and an index for GeneralizationGap, but is DataLoader over StreamWithLength;",
            id="a stream with a length",
            marks=pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined"),
        ),
        pytest.param(
            Somebodys,
            {"data": {"train_dataloaders": {"a": loaders()[0]}, "val_dataloaders": loaders()[1]}},
            "for GeneralizationGap, but is dict;",
            id="several training loaders",
        ),
        pytest.param(
            Somebodys,
            {"data": {"train_dataloaders": loaders()[0], "val_dataloaders": DataLoader(Stream(), 16)}},
            "the validation loader must be",
            id="a stream to validate on",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(make, settings, message):
    with pytest.raises(SettingError, match=message):
        fit(GeneralizationGap(), module=make(), **settings)


class NoValidation(Somebodys):
    validation_step = LightningModule.validation_step


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (NoValidation, {}),
        (Somebodys, {"limit_val_batches": 0}),
        (Somebodys, {"data": {"train_dataloaders": loaders()[0]}}),
    ],
    ids=["no validation_step", "no batches", "no loader"],
)
def test_without_validation_it_warns_and_measures_nothing(make, settings):
    gap = GeneralizationGap()
    with pytest.warns(UserWarning, match="GeneralizationGap measures nothing in this fit, which has no validation"):
        _, trainer = fit(gap, module=make(), **settings)
    assert trainer.current_epoch == 3
    assert not gap.curves.epochs
    assert not gap.signals


class HandsOnWhatItLogs(Reduces):
    def log(self, *args, **kwargs):
        super().log(*args, **kwargs)


class HandsOnHowItLogs(Reduces):
    def log(self, name, value, **settings):
        super().log(name, value, **settings)


@pytest.mark.parametrize("make", [Reduces, HandsOnWhatItLogs, HandsOnHowItLogs])
@pytest.mark.parametrize("equally_many", [True, False])
def test_values_are_reduced_as_the_module_says(make, equally_many):
    """The right value is Lightning's own, of the same samples; sums are compared where there are equally many."""
    data = {"train_dataloaders": DataLoader(samples(), 16), "val_dataloaders": DataLoader(samples(30, seed=2), 16)}
    _, trainer = fit(GeneralizationGap(max_samples=30 if equally_many else None), module=make(), data=data)
    logged = trainer.callback_metrics
    assert ("gap/val_wrong" in logged) == equally_many
    for name in ["loss", "worst", "easiest", *(["wrong"] if equally_many else [])]:
        assert logged[f"gap/val_{name}"] == pytest.approx(logged[f"val_{name}"].item(), abs=1e-6)


def test_samples_of_another_form_are_loaded_as_their_own_loader_does():
    """Training batches come ready-made, and validation is batched."""
    inputs, labels = samples().tensors
    ready = [(inputs[first : first + 14], labels[first : first + 14]) for first in range(0, 70, 14)]
    for train, val in [(ready, samples()), (samples(), ready)]:
        data = [DataLoader(part, batch_size=None if part is ready else 14) for part in (train, val)]
        settings = {"train_dataloaders": data[0], "val_dataloaders": data[1]}
        module, trainer = fit(GeneralizationGap(max_samples=None), data=settings)
        logged = [trainer.callback_metrics[f"gap/{split}_loss"].item() for split in ("train", "val")]
        assert logged == pytest.approx([by_hand(module, samples())[0]] * 2, abs=1e-5)


class AsksForMore(Reduces):
    """Takes what Lightning gives, by other names, and needs what a hook prepares."""

    def on_validation_batch_start(self, batch, batch_idx):
        self.spread = batch[0].std()

    def on_validation_batch_end(self, outputs, batch, batch_idx):
        del self.spread

    def validation_step(self, batch, *args, prefix="val", **kwargs):
        assert len(args) == 1
        losses = F.cross_entropy(self.net(batch[0] / self.spread), batch[1])
        self.log(f"{prefix}_loss", losses)


def test_the_step_is_called_as_lightning_calls_it():
    data = {"train_dataloaders": DataLoader(samples(), 16), "val_dataloaders": DataLoader(samples(30, seed=2), 16)}
    _, trainer = fit(GeneralizationGap(max_samples=None), module=AsksForMore(), data=data)
    assert trainer.callback_metrics["gap/val_loss"].item() == pytest.approx(
        trainer.callback_metrics["val_loss"].item(), abs=1e-6
    )


def test_loaders_that_are_loaded_anew_are_measured():
    class Grows(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(samples(10 * (1 + self.trainer.current_epoch)), 16)

        def val_dataloader(self):
            return DataLoader(samples(30 + self.trainer.current_epoch, seed=2), 16)

    gap = GeneralizationGap(max_samples=None)
    fit(gap, data={"datamodule": Grows()}, reload_dataloaders_every_n_epochs=1)
    assert gap.last_result.samples == {"train": 30, "validation": 32}


def test_validation_that_comes_late_is_measured_when_it_comes():
    gap = GeneralizationGap()
    fit(gap, check_val_every_n_epoch=2, num_sanity_val_steps=0, max_epochs=4)
    assert gap.curves.epochs == [1, 3]


class CountsWithOwnMeters(Somebodys):
    """An array and an object of its own, from which its loss and its accuracy are logged."""

    def on_validation_epoch_start(self):
        self.matrix, self.meter = np.zeros((3, 3)), CountsWithOwnMeters.Meter()

    class Meter:
        def __init__(self):
            self.total = self.count = 0

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        np.add.at(self.matrix, (batch[1].numpy(), logits.argmax(1).numpy()), 1)
        self.meter.total += F.cross_entropy(logits, batch[1], reduction="sum").item()
        self.meter.count += len(logits)
        self.log("val_seen", 1.0)

    def on_validation_epoch_end(self):
        self.log("val_loss", self.meter.total / self.meter.count)
        self.log("val_right", float(self.matrix.trace()))


def test_what_the_user_counts_with_own_meters_is_as_without_it():
    found = []
    for callbacks in ([], [GeneralizationGap(verbose=False)]):
        module, trainer = fit(*callbacks, module=CountsWithOwnMeters())
        found.append((trainer.callback_metrics["val_loss"], trainer.callback_metrics["val_right"], module.meter.count))
    assert found[0] == found[1]
    assert found[0][2] == 30


def test_what_cannot_be_copied_is_refused_before_training():
    module = Somebodys()
    module.stream = (letter for letter in "ab")
    with pytest.raises(SettingError, match=r"module\.stream must be something that can be copied with Generalization"):
        fit(GeneralizationGap(), module=module)
    assert module.trainer.global_step == 0


@pytest.mark.parametrize("name", ["every_n_epochs", "max_samples", "patience"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(SettingError, match=f"{name} must be a whole number of at least 1, but is {value}"):
        GeneralizationGap(**{name: value})


def test_a_resumed_run_goes_on_with_its_curves(tmp_path):
    whole = GeneralizationGap()
    fit(whole, max_epochs=4)
    _, first = fit(GeneralizationGap(), max_epochs=2)
    first.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    resumed = GeneralizationGap()
    trainer = quiet_trainer(resumed, max_epochs=4)
    trainer.fit(Somebodys(), *loaders(), ckpt_path=tmp_path / "half.ckpt")
    assert resumed.curves.epochs == whole.curves.epochs == [0, 1, 2, 3]
    assert resumed.curves.train["loss"][:2] == whole.curves.train["loss"][:2]
    again = GeneralizationGap()
    fit(again, max_epochs=1)
    assert again.curves.epochs == [0]


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from lightning_reg.callbacks import GeneralizationGap
from tests.monitors.gap import Somebodys, by_hand, samples
class Two(Somebodys):
    def on_validation_epoch_end(self):
        pass
module = Two()
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=2, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    callbacks=[GeneralizationGap(max_samples=None, verbose=False)])
from lightning.pytorch import Callback
class Report(Callback):
    def on_train_end(self, trainer, pl_module):
        values = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("gap")}
        hand = by_hand(pl_module, samples()), by_hand(pl_module, samples(30, seed=2))
        torch.save((values, hand), f"{sys.argv[1]}/{trainer.global_rank}.pt")
trainer.callbacks.append(Report())
trainer.fit(module, DataLoader(samples(), 16), DataLoader(samples(30, seed=2), 16))
"""


@pytest.mark.slow
def test_two_processes_measure_their_shares(tmp_path):
    """Both report what is measured by hand on everything: 70 and 30 samples divide evenly."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path)]
    subprocess.run(command, check=True, timeout=120, cwd=Path(__file__).parents[2])
    (values, (train, val)), (others, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert values == others
    assert values["gap/train_loss"] == pytest.approx(train[0], abs=1e-5)
    assert values["gap/val_loss"] == pytest.approx(val[0], abs=1e-5)
    assert values["gap/train_acc"] == pytest.approx(train[1], abs=1e-6)
    assert values["gap/acc"] == pytest.approx(train[1] - val[1], abs=1e-6)


class OfGraphs(LightningModule):
    """Batches with more nodes than graphs, of which the step says how many samples they are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 3)

    def loss(self, batch):
        pooled = torch.zeros(len(batch["labels"]), 2).index_add(0, batch["graph"], batch["nodes"])
        return F.cross_entropy(self.layer(pooled), batch["labels"])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), batch_size=len(batch["labels"]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def as_one_graph(graphs):
    return {
        "nodes": torch.cat(graphs),
        "graph": torch.cat([torch.full((len(nodes),), index) for index, nodes in enumerate(graphs)]),
        "labels": torch.tensor([len(nodes) % 3 for nodes in graphs]),
    }


def test_graphs_are_counted_and_not_their_nodes():
    """Lightning's warning of an ambiguous batch would be an error here; the step gives the batch's size."""
    graphs, others = ([torch.full((2 + index % 5, 2), 0.1 * index) for index in range(11)] for _ in range(2))
    gap = GeneralizationGap()
    train, val = (DataLoader(part, 4, collate_fn=as_one_graph) for part in (graphs, others))
    module, trainer = fit(gap, module=OfGraphs(), data={"train_dataloaders": train, "val_dataloaders": val})
    assert gap.last_result.samples == {"train": 11, "validation": 11}
    with torch.no_grad():
        right = module.loss(as_one_graph(graphs)).item()
    assert trainer.callback_metrics["gap/train_loss"].item() == pytest.approx(right, rel=1e-5)
