"""An average, mixing, a penalty and early stopping in one run: the weights that remain are those that were best."""

import itertools

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_reg.callbacks import (
    BatchMixing,
    BestWeightsEarlyStopping,
    ElasticNetPenalty,
    ExponentialMovingAverage,
    GradientClipping,
    StochasticWeightAverage,
)
from lightning_reg.transforms import Mixup
from tests.conformance.problem import SomebodysModule, loader
from tests.helpers import quiet_trainer

AVERAGES = {
    "ema": lambda: ExponentialMovingAverage(decay=0.8),
    "swa": lambda: StochasticWeightAverage(start=0.3, lr=0.1),
}


class Overfits(SomebodysModule):
    """Its validation loss is lowest in an epoch that is neither the first nor the last."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)

    def validation_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("val_loss", loss + abs(self.current_epoch - 3))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("average", AVERAGES)
def test_whatever_the_order_the_average_of_the_best_epoch_remains(average, order, tmp_path):
    saves = ModelCheckpoint(tmp_path, "best", monitor="val_loss", enable_version_counter=False)
    stops = BestWeightsEarlyStopping("val_loss", patience=2)
    three = [AVERAGES[average](), stops, saves]
    others = [ElasticNetPenalty(l1=1e-3, l2=1e-3), GradientClipping(max_norm=0.5), BatchMixing(Mixup())]
    module = Overfits()
    trainer = quiet_trainer(*(three[index] for index in order), *others, max_epochs=8, enable_checkpointing=True)
    trainer.fit(module, loader(), loader())
    assert trainer.current_epoch == 6  # the best, two without improvement, and the next one's number
    assert stops.best_epoch == 3
    best = torch.load(tmp_path / "best.ckpt", weights_only=False)["state_dict"]
    assert all(torch.equal(weight, best[name]) for name, weight in module.state_dict().items())
    (measured,) = trainer.validate(module, loader(), verbose=False)
    # Of three batches of the same size the loss is a mean, in which sums are made in another order.
    assert measured["val_loss"] - abs(trainer.current_epoch - 3) == pytest.approx(
        stops.kept["best_value"].item(), abs=1e-5
    )
