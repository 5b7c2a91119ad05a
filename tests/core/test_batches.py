"""Batches of which no part can be found or replaced."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import (
    AdversarialTraining,
    AugmentationConsistency,
    BatchMixing,
    InputGradientPenalty,
    JacobianPenalty,
    ManifoldMixup,
    ProgressiveResizing,
    RDrop,
    RegMixup,
)
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.conformance.problem import SomebodysModule
from tests.helpers import quiet_trainer


class Fetches(SomebodysModule):
    validation_step = None

    def training_step(self, dataloader_iter):
        (inputs, labels), _, _ = next(dataloader_iter)
        return F.cross_entropy(self.network(inputs), labels)


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter`")
@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument")
@pytest.mark.parametrize(
    "technique",
    [
        BatchMixing(Mixup()),
        BatchMixing(Mixup(), input_key="image"),
        RegMixup(),
        ManifoldMixup(layers=("network",)),
        InputGradientPenalty(weight=1.0),
        JacobianPenalty(weight=1.0),
        AdversarialTraining(eps=0.1),
        ProgressiveResizing(start=0.5),
        RDrop(weight=1.0),
        AugmentationConsistency(weight=1.0),
    ],
    ids=lambda technique: type(technique).__name__,
)
def test_a_step_that_fetches_its_own_batches_is_told_to_take_one(technique):
    data = DataLoader(TensorDataset(torch.randn(8, 1, 8, 8), torch.arange(8) % 3), batch_size=4)
    with pytest.raises(SettingError, match=r"training_step must take a batch.*, not a dataloader_iter, so that"):
        quiet_trainer(technique).fit(Fetches(), data)


class ReadsADict(SomebodysModule):
    validation_step = None

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch["x"]), batch["y"])


@pytest.mark.parametrize("technique", [BatchMixing, RegMixup, InputGradientPenalty, AdversarialTraining])
def test_a_setter_that_only_writes_into_the_batch_is_told_to_return_it(technique):
    settings = {
        BatchMixing: {"mix": Mixup(), "target_key": "y"},
        RegMixup: {"target_key": "y"},
        InputGradientPenalty: {"weight": 1.0},
        AdversarialTraining: {"eps": 0.1},
    }[technique]
    key = (lambda batch: batch["x"], lambda batch, value: batch.__setitem__("x", value))
    data = DataLoader([{"x": torch.randn(6), "y": number % 3} for number in range(8)], batch_size=4)
    with pytest.raises(SettingError, match=r"the setter of a key, such as input_key, must return the batch .* None"):
        quiet_trainer(technique(input_key=key, **settings)).fit(ReadsADict(), data)
