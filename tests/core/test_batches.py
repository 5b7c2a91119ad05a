"""Batches of which no part can be found."""

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
