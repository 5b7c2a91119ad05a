"""Step time of our models with a small network, compared with a bare Lightning module and a hand-written loop.

``python -m benchmarks step --threads 1`` trains 64-128-64-10 on batches of 32 in one process, alternating between
fits. The bare module computes its loss and logs nothing; ours also log the epoch's loss and metrics.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.stopwatch import WARM_UP, step_time
from benchmarks.tables import Options, Table
from benchmarks.timing import median_ratio, quartiles, wait
from lightning_reg.models import MLP, Multilabel, Regression

FEATURES, SIZES, OUTPUTS, BATCH = 64, (128, 64), 10, 32


def network() -> nn.Sequential:
    """Returns the network that all members train."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in zip((FEATURES, *SIZES), SIZES, strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(SIZES[-1], OUTPUTS))


class Bare(LightningModule):
    """A minimal Lightning module."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Returns the loss."""
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Optimizer:
        """Returns the default optimizer of our models."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def by_hand(batch: tuple[Tensor, Tensor], steps: int, device: str) -> float:
    """Returns the seconds per step of a hand-written loop."""
    model = network().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    start = 0.0
    for step in range(steps):
        if step == WARM_UP:
            wait(device)
            start = time.perf_counter()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    wait(device)
    return (time.perf_counter() - start) / (steps - WARM_UP)


def tables(options: Options) -> Iterator[Table]:
    """Yields one table."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH, FEATURES, generator=generator).to(options.device)
    numbers = torch.randn(BATCH, OUTPUTS, generator=generator).to(options.device)
    classes = numbers.argmax(1)
    shape: dict[str, Any] = {"input_shape": (FEATURES,), "hidden_sizes": SIZES}
    steps = 10 if options.smallest else 300 if options.quick else 1000

    def timed(make: Callable[[], LightningModule], targets: Tensor) -> Callable[[], float]:
        return lambda: step_time(make(), (inputs, targets), steps=steps, device=options.device)

    members: Mapping[str, Callable[[], float]] = {
        "a bare module": timed(Bare, classes),
        "MLP, classification": timed(lambda: MLP(num_classes=OUTPUTS, **shape), classes),
        "MLP, regression": timed(
            lambda: MLP(num_targets=OUTPUTS, task=Regression(standardize=False), **shape), numbers
        ),
        "MLP, several labels": timed(
            lambda: MLP(num_targets=OUTPUTS, task=Multilabel(), **shape), (numbers > 0).float()
        ),
        "a loop by hand": lambda: by_hand((inputs, classes), steps, options.device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in members}
    for _ in range(options.rounds(15, 5)):
        for name, run in members.items():
            seconds[name].append(run())
    table = Table(
        f"A step of a small network: {FEATURES}-{SIZES[0]}-{SIZES[1]}-{OUTPUTS}, batches of {BATCH}",
        ["model", "ms", "quartiles", "this / a bare module"],
    )
    for name, times in seconds.items():
        low, median, high = (1e3 * value for value in quartiles(times))
        table.add(name, median, f"{low:.3f} to {high:.3f}", f"{median_ratio(times, seconds['a bare module']):.3f}")
    yield table
