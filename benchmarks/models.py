"""Step time of our models compared with an equivalent bare Lightning module.

``python -m benchmarks models`` trains both on random images of MNIST's shape with the Trainer, alternating between
fits, and compares the time of a step. The bare module logs the same as ours: the loss and torchmetrics' accuracy, once
per epoch, on the progress bar.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.stopwatch import step_time
from benchmarks.tables import Options, Table
from benchmarks.timing import median_ratio, quartiles
from lightning_reg.models import MLP

SIZES = (512, 256)


class Bare(LightningModule):
    """A module as a user would write it."""

    def __init__(self, *, metric: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in zip((784, *SIZES), SIZES, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(0.2)]
        self.network = nn.Sequential(*layers, nn.Linear(SIZES[-1], 10))
        self.accuracy = MulticlassAccuracy(10, average="micro") if metric else None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Returns the loss."""
        inputs, labels = batch
        logits = self.network(inputs)
        loss = F.cross_entropy(logits, labels)
        if self.accuracy is not None:
            self.accuracy(logits, labels)
            self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True)
            self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Optimizer:
        """Returns the default optimizer of our models."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def tables(options: Options) -> Iterator[Table]:
    """Yields one table."""
    ours = partial(MLP, input_shape=(1, 28, 28), num_classes=10, hidden_sizes=SIZES, drop_prob=0.2, norm="batch")
    members: dict[str, Callable[[], LightningModule]] = {
        "MLP": ours,
        "  a bare module that logs the same": partial(Bare, metric=True),
        "  a bare module that logs nothing": partial(Bare, metric=False),
    }
    generator = torch.Generator().manual_seed(0)
    batch = (
        torch.randn(128, 1, 28, 28, generator=generator),
        torch.randint(0, 10, (128,), generator=generator),
    )
    steps = 10 if options.smallest else 60 if options.quick else 200
    seconds: dict[str, list[float]] = {name: [] for name in members}
    for _ in range(options.rounds(15, 3)):
        for name, make in members.items():
            seconds[name].append(step_time(make(), batch, steps=steps, device=options.device))
    table = Table(
        "A step of a model through the Trainer: 784-512-256-10, BatchNorm, dropout, batches of 128",
        ["model", "ms", "quartiles", "MLP / this"],
    )
    for name, times in seconds.items():
        low, median, high = (1e3 * value for value in quartiles(times))
        ratio = None if name == "MLP" else f"{median_ratio(seconds['MLP'], times):.3f}"
        table.add(name, median, f"{low:.2f} to {high:.2f}", ratio)
    yield table
