"""Averages weights in two processes, recomputes BatchNorm's statistics, and saves what rank 0 has."""

import sys

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, DistributedSampler

from lightning_reg.callbacks import ExponentialMovingAverage, StochasticWeightAverage
from tests.callbacks.averaged import Normed
from tests.conformance.problem import BATCH_SIZE, samples
from tests.helpers import quiet_trainer


class Shares(Normed):
    def train_dataloader(self):
        sampler = DistributedSampler(samples(), self.trainer.world_size, self.trainer.global_rank, shuffle=False)
        return DataLoader(samples(), batch_size=BATCH_SIZE // 2, sampler=sampler)

    val_dataloader = train_dataloader

    def validation_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("val_loss", loss, sync_dist=True)

    def on_fit_end(self):
        if self.global_rank == 0:
            logged = {name: value.item() for name, value in self.trainer.callback_metrics.items()}
            torch.save((self.state_dict(), logged), sys.argv[1])


if __name__ == "__main__":
    torch.set_num_threads(1)  # a forked process hangs on its parent's thread pool otherwise
    quiet_trainer(
        StochasticWeightAverage(start=1),
        ExponentialMovingAverage(decay=0.8),
        max_epochs=3,
        devices=2,
        strategy=DDPStrategy(start_method="fork"),
        num_sanity_val_steps=0,
    ).fit(Shares())
