"""Fits in two processes that share the batches of the single-process problem, and saves the weights."""

import sys

import torch
from torch.utils.data import DataLoader, DistributedSampler

from tests.conformance.problem import BATCH_SIZE, Setting, SomebodysModule, samples
from tests.conformance.techniques import TECHNIQUES


def main(name: str, accumulate: str, path: str) -> None:
    torch.set_num_threads(1)  # a forked process hangs on its parent's thread pool otherwise

    class Saves(SomebodysModule):
        def validation_step(self, batch, batch_idx):
            loss = torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])
            self.log("val_loss", loss, sync_dist=True)

        def on_fit_end(self):
            if self.global_rank == 0:
                torch.save([parameter.detach() for parameter in self.parameters()], path)

        def train_dataloader(self):
            # Lightning would shuffle the shards of a sampler of its own.
            sampler = DistributedSampler(samples(), self.trainer.world_size, self.trainer.global_rank, shuffle=False)
            return DataLoader(samples(), batch_size=BATCH_SIZE // 2, sampler=sampler)

        val_dataloader = train_dataloader

    trainer = Setting(accumulate=int(accumulate)).trainer(
        [TECHNIQUES[name].attach()], devices=2, strategy="ddp_fork", num_sanity_val_steps=0
    )
    trainer.fit(Saves())


if __name__ == "__main__":
    main(*sys.argv[1:])
