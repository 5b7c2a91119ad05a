"""Fits with weights that are sharded over two processes (FSDP2), and saves the whole weights."""

import sys

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from lightning_reg.callbacks import ElasticNetPenalty, GradientClipping, GradientMonitor, L2SPPenalty
from tests.conformance.problem import BATCH_SIZE, SomebodysModule, samples, weights_of
from tests.helpers import quiet_trainer


class Sharded(SomebodysModule):
    def configure_model(self):
        fully_shard(self.network, mesh=self.device_mesh["data_parallel"])

    def train_dataloader(self):
        sampler = DistributedSampler(samples(), self.trainer.world_size, self.trainer.global_rank, shuffle=False)
        return DataLoader(samples(), batch_size=BATCH_SIZE // 2, sampler=sampler)


def main(path):
    torch.set_num_threads(1)
    callbacks = [
        GradientClipping(max_norm=0.1),
        GradientMonitor(every_n_steps=1, layers=("*",), update_ratio=True),
        ElasticNetPenalty(l1=0.05, l2=0.05, proximal=True),
        L2SPPenalty(weight=0.05),
    ]
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer = quiet_trainer(
        *callbacks, devices=2, strategy=strategy, limit_val_batches=0, num_sanity_val_steps=0, log_every_n_steps=1
    )
    module = Sharded()
    trainer.fit(module)
    whole = [parameter.full_tensor() for parameter in weights_of(module)]
    if trainer.is_global_zero:
        torch.save((whole, {tag: value.item() for tag, value in trainer.callback_metrics.items()}), path)


if __name__ == "__main__":
    main(sys.argv[1])
