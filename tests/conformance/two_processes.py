"""Fits in two processes that share the batches of the single-process problem, and saves the weights of every fit."""

import sys
import traceback
from pathlib import Path

import torch
from lightning.pytorch import strategies
from torch.utils.data import DataLoader, DistributedSampler

from tests.conformance.problem import BATCH_SIZE, SomebodysModule, samples, weights_of
from tests.conformance.techniques import TECHNIQUES
from tests.helpers import of_package

DDPStrategy = of_package(strategies.DDPStrategy)


def run(name, setting, path):
    """Leaves the weights at ``path``."""

    class Shares(SomebodysModule):
        def setup(self, stage):
            # A fork makes torch's thread pool anew at its first use, which aborts where two threads of autograd are it.
            torch.set_num_threads(1)

        def validation_step(self, batch, batch_idx):
            loss = torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])
            self.log("val_loss", loss, sync_dist=True)

        def on_fit_end(self):
            if self.global_rank == 0:
                torch.save(weights_of(self), path)

        def train_dataloader(self):
            # Lightning would shuffle the shards of a sampler of its own.
            sampler = DistributedSampler(samples(), self.trainer.world_size, self.trainer.global_rank, shuffle=False)
            return DataLoader(samples(), batch_size=BATCH_SIZE // 2, sampler=sampler)

        val_dataloader = train_dataloader

    strategy = DDPStrategy(start_method="fork", find_unused_parameters=True)
    technique = TECHNIQUES[name]
    trainer = setting.trainer(technique.attached(), devices=2, strategy=strategy, num_sanity_val_steps=0)
    trainer.fit(setting.module(Shares, technique.prepare))


def main(folder):
    """Reads fits by their number from the folder, and goes on where one fails."""
    torch.set_num_threads(1)  # a forked process hangs on its parent's thread pool otherwise
    fits = torch.load(folder / "fits.pt", weights_only=False)
    for index, (name, setting) in fits.items():
        try:
            run(name, setting, folder / f"{index}.pt")
        except Exception:  # noqa: PERF203
            (folder / f"{index}.error").write_text(traceback.format_exc())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
