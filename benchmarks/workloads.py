"""Networks for timing training steps, on random data."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import IterableDataset

__all__ = ["L1", "L2", "WORKLOADS", "Endless", "Workload"]

L1, L2 = 1e-6, 1e-5


class Workload(LightningModule):
    """A module that classifies random images."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...], batch_size: int) -> None:
        super().__init__()
        self.network = network
        generator = torch.Generator().manual_seed(0)
        self.batch = (
            torch.randn(batch_size, *shape, generator=generator),
            torch.randint(0, 10, (batch_size,), generator=generator),
        )
        # Whether the next step adds a penalty to its loss; benchmarks.peers.Textbook sets it before each step.
        self.penalty = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Returns the loss."""
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        if self.penalty:
            self.penalty = False
            for weight in self.parameters():
                if weight.ndim > 1:
                    loss = loss + L1 * weight.abs().sum() + L2 / 2 * (weight**2).sum()
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs the loss."""
        self.log("val_loss", F.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self) -> Optimizer:
        """Returns SGD with momentum, as a cheap optimizer."""
        return torch.optim.SGD(self.parameters(), lr=1e-4, momentum=0.9)


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    """The same batch, repeated forever, so that loading isn't measured."""

    def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self.batch


def mlp() -> Workload:
    """Returns an MLP 784-2048-2048-10 with batches of 128: 5.8 M weights."""
    layers = [nn.Linear(784, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)]
    return Workload(nn.Sequential(*layers), (784,), 128)


def cnn() -> Workload:
    """Returns a CNN of three blocks of two convolutions on 32×32, with batches of 64: 0.3 M weights."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 128)):
        for channels in (inputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return Workload(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)), (3, 32, 32), 64)


def resnet50() -> Workload:
    """Returns torchvision's ResNet-50 on 64×64, with batches of 8: 23.5 M weights for 10 classes."""
    from torchvision.models import resnet50

    return Workload(resnet50(num_classes=10), (3, 64, 64), 8)


def tiny() -> Workload:
    """Returns a tiny CNN on 4×4 with batches of 4, for smoke tests."""
    return Workload(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)), (3, 4, 4), 4)


WORKLOADS: dict[str, Callable[[], Workload]] = {"mlp": mlp, "cnn": cnn, "resnet50": resnet50, "tiny": tiny}
