"""A small problem with BatchNorm, and loops that average weights by hand."""

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from torch import nn

from tests.conformance.problem import loader
from tests.helpers import quiet_trainer


class Normed(LightningModule):
    """Somebody's network with BatchNorm, a counter and a constant among its buffers."""

    def __init__(self, rate=0.1, make_optimizer=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
        self.register_buffer("constant", torch.tensor([0.1, 0.2]))
        self.rate = rate
        self.make_optimizer = make_optimizer

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        if self.make_optimizer:
            return self.make_optimizer(self.parameters())
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)


class Swaps(Callback):
    """Somebody's own way to validate with other weights: zeros."""

    def on_validation_start(self, trainer, pl_module):
        self.kept = [parameter.detach().clone() for parameter in pl_module.parameters()]
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.zero_()

    def on_validation_end(self, trainer, pl_module):
        with torch.no_grad():
            for parameter, value in zip(pl_module.parameters(), self.kept, strict=True):
                parameter.copy_(value)


class Weights(Callback):
    """The weights after each training batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append([parameter.detach().clone() for parameter in pl_module.parameters()])


def trains_alike(*callbacks, module=Normed):
    """Whether training goes on from the same weights as without the callbacks, to the bit."""
    with_them, without = Weights(), Weights()
    fit(*callbacks, with_them, module=module())
    fit(without, module=module())
    return all(
        a.equal(b)
        for some, others in zip(with_them.seen, without.seen, strict=True)
        for a, b in zip(some, others, strict=True)
    )


def fit(*callbacks, module=None, ckpt_path=None, train=loader, **settings):
    module = Normed() if module is None else module
    trainer = quiet_trainer(*callbacks, **{"max_epochs": 3, **settings})
    trainer.fit(module, train(), loader(), ckpt_path=ckpt_path)
    return module, trainer


def by_hand(*, epochs=3, after_step=lambda *_: None, after_epoch=lambda *_: None, module=None, optimizer=None):
    """A plain loop, with what averages hooked in."""
    module = Normed() if module is None else module
    optimizer = optimizer or module.configure_optimizers()
    step = 0
    for epoch in range(epochs):
        module.train()
        for inputs, labels in loader():
            optimizer.zero_grad()
            F.cross_entropy(module(inputs), labels).backward()
            optimizer.step()
            after_step(module, step)
            step += 1
        after_epoch(module, epoch)
    return module


def val_loss(module):
    """As the fit measures it: the mean over batches of the same size."""
    module.eval()
    with torch.no_grad():
        return torch.stack([F.cross_entropy(module(inputs), labels) for inputs, labels in loader()]).mean().item()


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def trained(average):
    """The trained weights, while the module has the average."""
    assert average.is_in
    return average.kept["weights"]["values"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
