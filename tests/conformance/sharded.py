"""Fits with weights that are sharded over two processes (FSDP2), and saves the whole weights."""

import sys

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from lightning_reg.callbacks import (
    ElasticNetPenalty,
    ExponentialMovingAverage,
    GradientClipping,
    GradientMonitor,
    L2SPPenalty,
    Lookahead,
    SharpnessAwareMinimization,
)
from tests.conformance.problem import BATCH_SIZE, SomebodysModule, samples, weights_of
from tests.helpers import end_process, quiet_trainer


class Sharded(SomebodysModule):
    def configure_model(self):
        # Nothing ever changes it, so its optimizer state is never made, and torch can't load a sharded one without.
        self.network.unused.bias.requires_grad_(False)
        fully_shard(self.network, mesh=self.device_mesh["data_parallel"])

    def train_dataloader(self):
        sampler = DistributedSampler(samples(), self.trainer.world_size, self.trainer.global_rank, shuffle=False)
        return DataLoader(samples(), batch_size=BATCH_SIZE // 2, sampler=sampler)

    val_dataloader = train_dataloader

    def validation_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("val_loss", loss, sync_dist=True)


def fit(**settings):
    """Validates in the middle of the epoch, too: what FSDP gathers there must not outlive it."""
    callbacks = [
        ExponentialMovingAverage(decay=0.7),
        ExponentialMovingAverage(decay=0.5),
        Lookahead(k=2, alpha=0.6),
        GradientClipping(max_norm=0.1),
        GradientMonitor(every_n_steps=1, layers=("*",), update_ratio=True),
        ElasticNetPenalty(l1=0.05, l2=0.05, proximal=True),
        L2SPPenalty(weight=0.05),
        SharpnessAwareMinimization(rho=0.2),
    ]
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    how = {"num_sanity_val_steps": 0, "log_every_n_steps": 1, "val_check_interval": 3, **settings}
    ckpt_path = how.pop("ckpt_path", None)
    trainer = quiet_trainer(*callbacks, devices=2, strategy=strategy, **how)
    module = Sharded()
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer, [parameter.full_tensor() for parameter in weights_of(module)]


def main(path):
    torch.set_num_threads(1)
    trainer, whole = fit()
    logged = {tag: value.item() for tag, value in trainer.callback_metrics.items()}
    trainer.save_checkpoint(path + ".ckpt")
    _, resumed = fit(max_epochs=2, ckpt_path=path + ".ckpt")
    if trainer.is_global_zero:
        torch.save((whole, resumed, logged), path)


if __name__ == "__main__":
    main(sys.argv[1])
    end_process()
