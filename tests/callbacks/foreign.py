"""What tests of other people's projects share."""

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from tests.conformance.problem import Setting, SomebodysModule, loader


def fit(module, *callbacks, setting=None, **settings):
    trainer = (setting or Setting()).trainer(callbacks, **{"log_every_n_steps": 1, **settings})
    trainer.fit(module, loader(), loader())
    return {tag: value.item() for tag, value in trainer.callback_metrics.items()}


def assert_same(some, others, atol=1e-6):
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


class Manual(SomebodysModule):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.network(batch[0]), batch[1]))
        self.before(optimizer)
        optimizer.step()

    def before(self, optimizer):
        pass


class Saves(Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)
