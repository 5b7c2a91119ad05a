"""What is found in a run, and what in it is said to work against itself."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_reg.audit.contradictions import _CHECKS
from lightning_reg.callbacks import (
    BatchMixing,
    BestWeightsEarlyStopping,
    ConfidencePenalty,
    ElasticNetPenalty,
    ExponentialMovingAverage,
    FreezeBatchNorm,
    GradientClipping,
    InsertDropout,
    L1Penalty,
    L2Penalty,
    ManifoldMixup,
    RegularizationAudit,
    SnapshotEnsemble,
    StrengthSchedule,
    UnitNorm,
)
from lightning_reg.cli.command import RegularizationCLI
from lightning_reg.optim import weight_decay_groups
from lightning_reg.transforms import Mixup, RowCutout
from tests.conftest import REPOSITORY
from tests.helpers import quiet_trainer


class Module(LightningModule):
    def __init__(self, *layers, optimizer=None, label_smoothing=0.0):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 8), *layers, nn.Linear(8, 3))
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.optimizer = optimizer or (lambda module: torch.optim.SGD(module.parameters(), lr=0.1))

    def training_step(self, batch, batch_idx):
        loss = self.loss(self.network(batch[0]), batch[1])
        self.log_dict({"train_loss": loss, "norm_of_weights": self.network[0].weight.norm()})
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self):
        return self.optimizer(self)


def loader(batch_size=16):
    return DataLoader(TensorDataset(torch.randn(32, 4), torch.arange(32) % 3), batch_size=batch_size)


def audited(module, *callbacks, data=None, validation=True, batch_size=16, warn=True, verbose=True, **settings):
    audit = RegularizationAudit(warn=warn, verbose=verbose)
    trainer = quiet_trainer(audit, *callbacks, **{"limit_train_batches": 1, "max_epochs": 5, **settings})
    if data is None:
        trainer.fit(module, loader(batch_size), loader() if validation else None)
    else:
        trainer.fit(module, datamodule=data)
    return audit


def whats(audit):
    return [contradiction.what for contradiction in audit.contradictions]


def sgd(**settings):
    return lambda module: torch.optim.SGD(module.parameters(), lr=0.1, **settings)


def grouped(kind, **settings):
    return lambda module: kind(weight_decay_groups(module, 0.1), lr=0.1, **settings)


class SomebodysClipping(Callback):
    """By its name."""


class Mixing(LightningDataModule):
    mix = Mixup(alpha=0.4)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(32, 4), torch.rand(32, 3).softmax(1)), batch_size=16)

    def val_dataloader(self):
        return loader()


class WithAccuracy(Module):
    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(3)


class Spectral(Module):
    def __init__(self):
        super().__init__()
        nn.utils.parametrizations.spectral_norm(self.network[0])


class LogsAccuracy(Module):
    def validation_step(self, batch, batch_idx):
        self.log("val_accuracy", (self.network(batch[0]).argmax(1) == batch[1]).float().mean())


class TakesSoft(WithAccuracy):
    takes_soft_targets = True


CONTRADICTIONS = {
    "_two_clippers": lambda: (Module(), [SomebodysClipping()], {"gradient_clip_val": 1.0}),
    "_two_averages": lambda: (Module(), [EMAWeightAveraging(), StochasticWeightAveraging(swa_lrs=0.1)], {}),
    "_average_with_spectral_norm": lambda: (Spectral(), [EMAWeightAveraging()], {}),
    "_soft_targets_for_hard_labels": lambda: (WithAccuracy(), [], {"data": Mixing()}),
    "_decay_on_norms": lambda: (Module(nn.LayerNorm(8), optimizer=sgd(weight_decay=0.1)), [], {}),
    "_coupled_decay": lambda: (Module(optimizer=grouped(torch.optim.Adam)), [], {}),
    "_penalty_under_adam": lambda: (
        Module(optimizer=lambda module: torch.optim.Adam(module.parameters())),
        [L2Penalty(weight=0.1)],
        {},
    ),
    "_l2_twice": lambda: (Module(optimizer=grouped(torch.optim.SGD)), [ElasticNetPenalty(l1=0.0, l2=0.1)], {}),
    "_dropout_before_batch_norm": lambda: (Module(nn.Dropout(0.2), nn.ReLU(), nn.BatchNorm1d(8)), [], {}),
    "_dropout_with_selu": lambda: (Module(nn.SELU(), nn.Dropout(0.2)), [], {}),
    "_high_rates": lambda: (Module(nn.Dropout(0.95)), [], {}),
    "_small_batches": lambda: (Module(nn.BatchNorm1d(8)), [], {"batch_size": 4}),
    "_softened_twice": lambda: (Module(label_smoothing=0.1), [ConfidencePenalty(weight=0.1)], {}),
    "_mixed_twice": lambda: (Module(nn.ReLU()), [ManifoldMixup(types=("ReLU",)), BatchMixing(Mixup(alpha=0.4))], {}),
    "_stopping_without_validation": lambda: (
        Module(),
        [EarlyStopping("norm_of_weights", check_on_train_epoch_end=False)],
        {"validation": False},
    ),
    "_stopping_by_training_data": lambda: (Module(), [EarlyStopping("train_loss")], {}),
    "_stopping_at_the_worst": lambda: (LogsAccuracy(), [EarlyStopping("val_accuracy")], {}),
    "_average_never_begins": lambda: (Module(), [ExponentialMovingAverage(start_step=5)], {}),
    "_stopping_at_a_restart": lambda: (
        Module(),
        [EarlyStopping("val_loss", patience=2), SnapshotEnsemble(cycles=2)],
        {},
    ),
    "_patience_never_runs_out": lambda: (Module(), [EarlyStopping("val_loss", patience=5)], {}),
    "_stopping_by_raw_weights": lambda: (
        Module(),
        [EarlyStopping("val_loss"), StochasticWeightAveraging(swa_lrs=0.1)],
        {},
    ),
    "_stopping_by_what_is_not_kept": lambda: (
        Module(),
        [EarlyStopping("val_loss"), ExponentialMovingAverage(validate="both")],
        {},
    ),
    "_decay_of_unit_norms": lambda: (Module(optimizer=grouped(torch.optim.SGD)), [UnitNorm()], {}),
}


@pytest.mark.filterwarnings("ignore:Swapping scheduler", "ignore:You defined a `validation_step` but")
@pytest.mark.filterwarnings("ignore:ExponentialMovingAverage has no effect. start_step is 5")
@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradiction_is_named_alone(name, capsys):
    module, callbacks, settings = CONTRADICTIONS[name]()
    audit = audited(module, *callbacks, **settings)
    assert len(audit.contradictions) == 1, whats(audit)
    (contradiction,) = audit.contradictions
    assert contradiction.what
    assert contradiction.reason
    assert contradiction.remedy
    printed = " ".join(capsys.readouterr().out.split())
    assert f"1. {contradiction}" in printed


def test_every_check_has_a_case():
    assert {check.__name__ for check in _CHECKS} == set(CONTRADICTIONS)


@pytest.mark.parametrize(
    ("module", "callbacks", "settings"),
    [
        pytest.param(Module, [], {}, id="nothing"),
        pytest.param(Module, [], {"gradient_clip_val": 1.0}, id="the Trainer's clipping alone"),
        pytest.param(Module, [SomebodysClipping()], {"gradient_clip_val": 0.0}, id="the Trainer clips at 0"),
        pytest.param(
            Module,
            [GradientClipping(include=("network.0.*",)), GradientClipping(include=("network.1.*",))],
            {},
            id="two clippings of different gradients",
        ),
        pytest.param(TakesSoft, [], {"data": Mixing()}, id="a module that takes probabilities"),
        pytest.param(lambda: Module(nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2)), [], {}, id="norm, dropout"),
        pytest.param(
            lambda: Module(nn.Dropout(0.2), nn.Linear(8, 8), nn.BatchNorm1d(8)), [], {}, id="weights in between"
        ),
        pytest.param(lambda: Module(nn.Dropout(0.0), nn.BatchNorm1d(8)), [], {}, id="dropout at rate 0"),
        pytest.param(lambda: Module(nn.SELU(), nn.AlphaDropout(0.2)), [], {}, id="alpha dropout"),
        pytest.param(lambda: Module(nn.BatchNorm1d(8)), [FreezeBatchNorm()], {"batch_size": 4}, id="frozen norms"),
        pytest.param(lambda: Module(optimizer=grouped(torch.optim.AdamW)), [L1Penalty(weight=0.1)], {}, id="AdamW, L1"),
        pytest.param(
            lambda: Module(optimizer=grouped(torch.optim.Adam, decoupled_weight_decay=True)),
            [],
            {},
            id="Adam, decoupled",
            marks=pytest.mark.skipif(
                "decoupled_weight_decay" not in inspect.signature(torch.optim.Adam).parameters,
                reason="this torch has no decoupled weight decay in Adam",
            ),
        ),
        pytest.param(lambda: Module(optimizer=grouped(torch.optim.Adafactor)), [], {}, id="Adafactor, decoupled"),
        pytest.param(lambda: Module(optimizer=grouped(torch.optim.SGD)), [L2Penalty(weight=0.0)], {}, id="L2 of 0"),
        pytest.param(Module, [EarlyStopping("val_loss", patience=4)], {}, id="patience that can run out"),
        pytest.param(
            Module,
            [EarlyStopping("val_loss", patience=9)],
            {"limit_train_batches": 2, "val_check_interval": 0.5},
            id="patience that can run out by several checks an epoch",
        ),
        pytest.param(
            Module,
            [BestWeightsEarlyStopping("val_loss", patience=9)],
            {"val_check_interval": "00:00:01:00"},
            id="patience of which nobody knows how many checks there are",
        ),
        pytest.param(Module, [EMAWeightAveraging()], {}, id="average alone"),
        pytest.param(Module, [ExponentialMovingAverage(start_step=4)], {}, id="average of the last step"),
        pytest.param(lambda: Module(label_smoothing=0.1), [], {}, id="label smoothing alone"),
        pytest.param(
            lambda: Module(nn.ReLU()),
            [BatchMixing(RowCutout()), ManifoldMixup(types=("ReLU",)), BatchMixing(Mixup(alpha=0.0))],
            {},
            id="one of three mixes",
        ),
    ],
)
def test_nothing_is_said_where_nothing_contradicts(module, callbacks, settings):
    assert whats(audited(module(), *callbacks, **settings)) == []


def test_a_loss_that_is_best_at_its_highest_is_named():
    (contradiction,) = audited(Module(), EarlyStopping("val_loss", mode="max", patience=1)).contradictions
    assert contradiction.what == "EarlyStopping watches 'val_loss' with mode 'max'"
    assert "better where it is lower" in contradiction.reason


def test_patience_is_compared_with_how_often_is_checked():
    audit = audited(Module(), EarlyStopping("val_loss", patience=2), check_val_every_n_epoch=2)
    assert whats(audit) == ["EarlyStopping with patience 2 in 2 checks"]


def rows(audit):
    return {row.technique: (row.place, row.settings) for row in audit.rows}


@pytest.mark.parametrize(("decay", "words"), [(0.01, "100,000 epochs"), (30.0, "33.3 epochs")])
def test_the_timescale_of_decay_is_a_plain_number(decay, words):
    """One step an epoch at a learning rate of 1e-3."""
    module = Module(
        optimizer=lambda module: torch.optim.AdamW(
            [{"params": [module.network[0].weight, module.network[1].weight], "weight_decay": decay}], lr=1e-3
        )
    )
    assert rows(audited(module, verbose=False))["AdamW"][1].endswith(f", timescale {words}")


def test_everything_is_found(capsys):
    class Augmented(TensorDataset):
        transform = nn.Sequential(nn.Identity())

    module = Module(nn.BatchNorm1d(8), nn.Dropout(0.25), nn.Dropout(0.5), label_smoothing=0.1)
    module.network[0].bias.requires_grad_(False)
    module.optimizer = grouped(torch.optim.AdamW)
    nn.utils.parametrizations.weight_norm(module.network[4])
    callbacks = [
        L1Penalty(weight=1e-3, schedule=StrengthSchedule(kind="cosine")),
        InsertDropout(p=0.2, include=("network.1",)),
        EarlyStopping("val_loss", patience=2),
        SomebodysClipping(),
    ]
    audit = RegularizationAudit()
    trainer = quiet_trainer(
        audit, *callbacks, max_epochs=9, limit_train_batches=1, accumulate_grad_batches=2, gradient_clip_val=0.5
    )
    samples = Subset(Augmented(torch.randn(32, 4), torch.arange(32) % 3), range(32))
    trainer.fit(module, DataLoader(samples, batch_size=16), loader())
    found = rows(audit)
    assert found["batch size"] == ("batch", "16 samples × 2 accumulated = 32 a step")
    assert found["transforms"][0] == "batch"
    assert found["Dropout"] == ("forward", "rates 0.2 to 0.5 in 3 layers")
    assert found["InsertDropout"][1].startswith("p 0.2, ")
    assert found["BatchNorm1d"] == ("forward", "1 layer")
    assert found["WeightNorm"] == ("forward", "of the weights of 1 layer")
    assert found["frozen weights"] == ("forward", "8 of 86")
    assert found["label smoothing"] == ("loss", "0.1")
    assert found["L1Penalty"] == ("gradient", "weight 0.001, schedule StrengthSchedule(kind cosine)")
    assert found["clipping by the Trainer"] == ("gradient", "norm 0.5")
    assert found["AdamW"] == ("weights", "weight decay 0.1 on 59 of 78 weights, timescale 100 epochs")
    assert found["length"] == ("run", "at most 9 epochs")
    assert found["EarlyStopping"] == ("run", "monitor val_loss, patience 2")
    assert found["SomebodysClipping"][0] == "run"
    printed = capsys.readouterr().out
    assert all(name in printed for name in found)
    assert max(len(line) for line in printed.splitlines()) <= 100


def test_a_single_epoch_or_step_is_one():
    audit = audited(Module(), max_epochs=1, max_steps=1)
    assert rows(audit)["length"] == ("run", "at most 1 epoch and 1 step")


def test_clipping_at_0_is_none():
    assert "clipping by the Trainer" not in rows(audited(Module(), gradient_clip_val=0.0))


def test_only_what_the_algorithm_uses_is_shown():
    audit = audited(Module(), GradientClipping(algorithm="percentile", percentile=20))
    assert rows(audit)["GradientClipping"] == ("gradient", "algorithm percentile, percentile 20, history 1000")


def test_a_metric_that_nobody_logs_is_named_after_the_first_epoch():
    said = "EarlyStopping watches 'val_los', which was never logged: it never acts. Watch one of .*train_loss, val_loss"
    with pytest.warns(UserWarning, match=said):
        audit = audited(Module(), EarlyStopping("val_los", strict=False, patience=1), check_val_every_n_epoch=2)
    assert len(audit.contradictions) == 1


def test_it_can_be_silent(capsys):
    with pytest.warns(UserWarning, match="drops 95 %"):
        audited(Module(nn.Dropout(0.95)), verbose=False)
    audited(Module(nn.Dropout(0.95)), EarlyStopping("val_los", strict=False), verbose=False, warn=False)
    assert capsys.readouterr().out == ""


def test_a_second_one_stays_silent(capsys):
    audited(Module(), RegularizationAudit())
    assert capsys.readouterr().out.count("Regularization of") == 1


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_our_own_configurations_contradict_nothing(path, image_folder, tmp_path):
    options = []
    if path.stem == "image_folder_labels_cnn":
        root = image_folder(("all",), classes=3, size=32, count=60)
        files = sorted(file.relative_to(root).as_posix() for file in root.rglob("*.png"))
        rows = [f"{file},{number % 2},{number // 2 % 2}" for number, file in enumerate(files)]
        (tmp_path / "labels.csv").write_text("\n".join(["file,first,second", *rows]))
        options = [f"--data.root={root}", f"--data.labels={tmp_path / 'labels.csv'}", "--data.val_size=0.25"]
    elif not path.stem.startswith(("digits_", "tabular_", "mnist1d_")):
        root = image_folder(("train", "test"), classes=3, size=32, count=60)
        options = ["--data.dataset=image_folder", f"--data.root={root}", "--data.val_size=0.25"]
    audits = []
    short = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--trainer.logger=false"]

    class Audited(RegularizationCLI):
        def instantiate_trainer(self, **settings):
            trainer = super().instantiate_trainer(**settings)
            audits.extend(callback for callback in trainer.callbacks if isinstance(callback, RegularizationAudit))
            trainer.callbacks.append(StopAtOnce())
            return trainer

        def after_fit(self):
            """Nothing was trained."""

    Audited(["fit", "--config", str(path), *short, *options])
    (audit,) = audits
    assert audit.rows
    assert whats(audit) == []


class StopAtOnce(Callback):
    def on_train_start(self, trainer, pl_module):
        trainer.should_stop = True
        trainer.fit_loop.max_epochs = 1
