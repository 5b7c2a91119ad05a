"""Somebody else's networks and a module around them, to operate on."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import VisionTransformer, resnet18

from tests.helpers import quiet_trainer


def vit():
    """Of vit_b_16's shape, but small."""
    return VisionTransformer(
        image_size=16, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3
    )


def resnet():
    return resnet18(num_classes=3)


def sequential():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(inplace=True)),
        nn.Flatten(),
        nn.Linear(16 * 256, 3),
    )


class Somebodys(LightningModule):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.net = make()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.training_step(batch, batch_idx))

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader():
    generator = torch.Generator().manual_seed(1)
    return DataLoader(TensorDataset(torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 3), batch_size=4)


def fit(make, *callbacks, module=None, **settings):
    module = Somebodys(make) if module is None else module
    trainer = quiet_trainer(*callbacks, **{"max_epochs": 1, **settings})
    trainer.fit(module, loader())
    return module, trainer
