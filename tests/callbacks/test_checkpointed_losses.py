"""Losses within activation checkpointing are refused by that name, also where a first pass has no gradients yet."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import (
    AugmentationConsistency,
    BatchMixing,
    ConfidencePenalty,
    LabelSmoothing,
    LogitPenalty,
    ManifoldMixup,
    RDrop,
    RegMixup,
    SharpnessAwareMinimization,
    SnapshotEnsemble,
)
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.conformance.problem import SomebodysModule, loader, weights_of
from tests.helpers import quiet_trainer


class Checkpointed(SomebodysModule):
    """Checkpoints the network and its loss, or the loss alone, or nothing where ``reentrant`` is None."""

    def __init__(self, reentrant, *, whole=True):
        super().__init__()
        self.network = nn.Sequential(self.network, nn.Dropout(0.2))
        self.reentrant = reentrant
        self.whole = whole

    def loss(self, inputs, labels):
        return F.cross_entropy(self.network(inputs), labels)

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        if self.reentrant is None:
            return self.loss(inputs, labels)
        if self.whole:
            return checkpoint(self.loss, inputs.requires_grad_(), labels, use_reentrant=self.reentrant)
        return checkpoint(F.cross_entropy, self.network(inputs), labels, use_reentrant=self.reentrant)


class Both(Checkpointed):
    """Computes a loss within checkpointing, and one outside."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.loss(*batch)


class ByHand(Checkpointed):
    """Computes the labels' probabilities within checkpointing, and a loss outside."""

    def loss(self, inputs, labels):
        return self.network(inputs).softmax(1).gather(1, labels[:, None]).mean()

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + F.cross_entropy(self.network(batch[0]), batch[1])


def fit(module, callback):
    torch.manual_seed(0)
    quiet_trainer(callback, max_epochs=2).fit(module, loader(), loader())
    return weights_of(module)


CHANGES = {
    "BatchMixing": lambda: BatchMixing(Mixup(alpha=1.0)),
    "RegMixup": RegMixup,
    "ManifoldMixup": lambda: ManifoldMixup(layers=["network.0"]),
    "LabelSmoothing": lambda: LabelSmoothing(smoothing=0.2),
    "LogitPenalty": lambda: LogitPenalty(kind="norm", weight=0.5),
}
READS = {
    "ConfidencePenalty": lambda: ConfidencePenalty(weight=0.1),
    "LogitPenalty": lambda: LogitPenalty(weight=0.1),
    "RDrop": lambda: RDrop(weight=0.1),
}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("name", "make", "reentrant"),
    [
        *((name, make, reentrant) for name, make in CHANGES.items() for reentrant in (True, False)),
        *((name, make, True) for name, make in READS.items()),
    ],
)
def test_a_checkpointed_loss_is_refused_by_that_name(name, make, reentrant, whole):
    with pytest.raises(SettingError, match=f"outside of activation checkpointing with {name}, which doesn't see it"):
        fit(Checkpointed(reentrant, whole=whole), make())


def test_a_loss_beside_a_checkpointed_one_does_not_hide_it():
    with pytest.raises(SettingError, match="outside of activation checkpointing"):
        fit(Both(True), BatchMixing(Mixup(alpha=1.0)))


def test_a_part_by_hand_that_is_checkpointed_is_refused_by_that_name():
    with pytest.raises(SettingError, match="is compiled or is checkpointed makes of it"):
        fit(ByHand(True), BatchMixing(Mixup(alpha=1.0)))


@pytest.mark.parametrize("whole", [True, False])
def test_images_that_are_augmented_consistently_have_their_loss_outside(whole):
    module = Checkpointed(True, whole=whole)
    module.network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    images = TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8) % 2)
    trainer = quiet_trainer(AugmentationConsistency(augment="randaugment", weight=0.5), max_epochs=1)
    with pytest.raises(SettingError, match="outside of activation checkpointing with AugmentationConsistency"):
        trainer.fit(module, *[DataLoader(images, batch_size=4)] * 2)


@pytest.mark.parametrize(
    "make",
    [lambda: SharpnessAwareMinimization(fraction=0.5), lambda: SnapshotEnsemble(cycles=2)],
    ids=["SAM", "cycles"],
)
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_what_only_reads_a_loss_reads_a_checkpointed_one(make, reentrant, whole):
    expected = fit(Checkpointed(None), make())
    torch.testing.assert_close(fit(Checkpointed(reentrant, whole=whole), make()), expected)
