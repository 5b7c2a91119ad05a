"""Techniques that repeat the batch keep the module's own loss, whatever its reduction, and find the copies."""

import functools

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_reg.callbacks import AugmentationConsistency, BatchMixing, ConfidencePenalty, RDrop, RegMixup
from lightning_reg.core.batches import repeated, rows_of
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.callbacks.mixed import Checked
from tests.helpers import quiet_trainer

SIZE = 4


class Unchanged(nn.Module):
    def forward(self, image):
        return image


def views(weight=0.0):
    return AugmentationConsistency(weight=weight, loss_of="all", augment=[Unchanged()])


REPEATING = {"RDrop": lambda: RDrop(weight=1e-9), "RegMixup": RegMixup, "AugmentationConsistency": views}


def masked_mean(values):
    return (values * torch.ones(len(values)).double()).sum() / len(values)


LOSSES = {
    "mean": lambda logits, batch: F.cross_entropy(logits, batch["y"]),
    "half of the mean": lambda logits, batch: 0.5 * F.cross_entropy(logits, batch["y"]),
    "sum": lambda logits, batch: F.cross_entropy(logits, batch["y"], reduction="sum"),
    "sum by the size": lambda logits, batch: F.cross_entropy(logits, batch["y"], reduction="sum") / len(logits),
    "sum by the texts": lambda logits, batch: F.cross_entropy(logits, batch["y"], reduction="sum") / len(batch["name"]),
    "sum by a constant": lambda logits, batch: F.cross_entropy(logits, batch["y"], reduction="sum") / SIZE,
    "values": lambda logits, batch: masked_mean(F.cross_entropy(logits, batch["y"], reduction="none")),
    "sum of values": lambda logits, batch: F.cross_entropy(logits, batch["y"], reduction="none").sum() / SIZE,
    "weighted classes": lambda logits, batch: F.cross_entropy(
        logits, batch["y"], weight=torch.tensor([0.5, 3.0, 1.0], dtype=logits.dtype)
    ),
}


@torch.no_grad()
def one_loss(logits, labels):
    return -logits.log_softmax(1).gather(1, labels.unsqueeze(1)).mean()


class Theirs(LightningModule):
    """Has samples that are all equal, and counts."""

    def __init__(self, loss):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout(1e-12)).double()
        self.register_buffer("passes", torch.zeros(()))
        self.loss = loss

    def train_dataloader(self):
        image = torch.linspace(0, 255, 12).round().double().view(3, 2, 2) / 255
        return DataLoader([{"x": image, "y": 1, "name": str(index)} for index in range(2 * SIZE)], SIZE)

    def training_step(self, batch, batch_idx):
        self.passes += 1
        loss = self.loss(self.network(batch["x"]), batch)
        self.log("loss", loss, reduce_fx="sum", on_step=False, on_epoch=True)
        return {"loss": loss}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02)


def trained(loss, *callbacks, factor=1.0):
    module = Theirs(lambda logits, batch: factor * loss(logits, batch))
    for callback in callbacks:
        callback.input_key, callback.target_key = "x", "y"
    quiet_trainer(*callbacks, max_epochs=2).fit(module)
    return module


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("technique", REPEATING.values(), ids=REPEATING)
def test_the_own_loss_is_the_mean_over_copies_whatever_its_reduction(technique, loss):
    callback = technique()
    module = trained(loss, callback)
    expected = trained(loss, factor=2.0 if isinstance(callback, RegMixup) else 1.0)
    torch.testing.assert_close(list(module.parameters()), list(expected.parameters()), rtol=1e-7, atol=1e-7)
    assert module.passes == expected.passes  # what is run to find out isn't counted


@pytest.mark.parametrize("technique", REPEATING.values(), ids=REPEATING)
def test_nothing_is_run_to_find_out_where_the_module_takes_means(technique):
    """What can't be put back for another run would be warned of, and a warning is an error here."""
    module = Theirs(LOSSES["mean"])
    module.source = (number for number in range(100))
    callback = technique()
    callback.input_key, callback.target_key = "x", "y"
    quiet_trainer(callback).fit(module)
    assert module.passes == 2  # one a batch


@pytest.mark.parametrize("seed", range(4))
def test_batches_without_a_mixed_half_keep_a_sum(seed):
    """Each step has once or twice the plain loss, by whether its batch was repeated, whichever comes first."""
    sizes, losses = [], []

    class Watches(Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            sizes.append(pl_module.size)
            losses.append(loss.item() / pl_module.plain)

    def loss(logits, batch):
        module.size, module.plain = len(logits), SIZE * float(one_loss(logits.detach(), batch["y"]))
        return LOSSES["sum"](logits, batch)

    module = Theirs(loss)
    technique = RegMixup(prob=0.5, seed=seed, input_key="x", target_key="y")
    quiet_trainer(technique, Watches(), max_epochs=4).fit(module)
    assert set(sizes) == {SIZE, 2 * SIZE}
    assert losses == pytest.approx([size / SIZE for size in sizes])


def test_terms_of_others_are_not_divided_with_a_sum():
    ways = [
        trained(LOSSES["sum"], *callbacks, ConfidencePenalty(weight=0.5)) for callbacks in ((), (RDrop(weight=1e-9),))
    ]
    torch.testing.assert_close(*(list(module.parameters()) for module in ways), rtol=1e-7, atol=1e-7)


def test_a_sum_is_mixed_as_a_mean_is():
    def loss(logits, batch, reduction):
        return F.cross_entropy(logits, batch["y"], reduction=reduction) / (SIZE if reduction == "sum" else 1)

    ways = [
        trained(functools.partial(loss, reduction=reduction), RDrop(weight=1.0), BatchMixing(Mixup(), seed=0))
        for reduction in ("mean", "sum")
    ]
    torch.testing.assert_close(*(list(module.parameters()) for module in ways), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("technique", REPEATING.values(), ids=REPEATING)
def test_a_sum_over_samples_beside_a_mean_is_refused(technique):
    def both(logits, batch):
        return F.cross_entropy(logits, batch["y"]) + F.cross_entropy(logits, batch["y"], reduction="sum")

    with pytest.raises(SettingError, match="reduction must be the same in all losses"):
        trained(both, technique())


def contrastive(logits, batch):
    return F.cross_entropy(logits @ logits.T, torch.arange(len(logits)))


def mixed_by_itself(logits, batch):
    order = torch.arange(len(logits)).roll(1)
    targets = F.one_hot(torch.arange(len(logits)) % SIZE % 3, 3).double()
    targets[0] = 1 / 3
    return F.cross_entropy(logits, 0.6 * targets + 0.4 * targets[order])


@pytest.mark.parametrize("loss", [contrastive, mixed_by_itself])
@pytest.mark.parametrize("technique", [lambda: RDrop(weight=1.0), lambda: views(1.0)], ids=["RDrop", "views"])
def test_copies_with_different_targets_are_refused(technique, loss):
    with pytest.raises(SettingError, match="but copies of a sample have different targets"):
        trained(loss, technique())


def test_lists_of_texts_and_numbers_are_repeated_and_chosen_as_tensors_are():
    batch = {"x": torch.tensor([1, 2]), "name": ["a", "b"], "more": (("c", "d"), [3, 4])}
    assert repeated(batch, 2, technique="RDrop")["name"] == ["a", "b", "a", "b"]
    assert repeated(batch, 2, technique="RDrop")["more"] == (("c", "d", "c", "d"), [3, 4, 3, 4])
    assert rows_of(batch, torch.tensor([1]))["more"] == (("d",), [4])


def test_classes_that_check_their_fields_are_repeated_and_chosen():
    batch = Checked(torch.zeros(2, 3), torch.arange(2))
    assert repeated(batch, 2, technique="RDrop").label.tolist() == [0, 1, 0, 1]
    assert rows_of(batch, torch.tensor([1])).label.tolist() == [1]


def test_containers_and_sizes_of_as_many_entries_as_samples_are_left_alone():
    inputs, labels = torch.zeros(2, 3), torch.ones(2)
    pair = repeated((inputs, [labels, labels]), 2, technique="RDrop")
    assert [len(pair), len(pair[1]), len(pair[0]), len(pair[1][0])] == [2, 2, 4, 4]
    beside = repeated({"x": inputs, "size": (224, 224), "text": "ab", "three": ["a", "b", "c"]}, 2, technique="RDrop")
    assert [beside["size"], beside["text"], beside["three"]] == [(224, 224), "ab", ["a", "b", "c"]]
