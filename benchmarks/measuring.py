"""Cost of measuring the generalization gap, in training steps.

``python -m benchmarks.measuring`` trains the workloads of ``benchmarks.workloads`` in one fit of short epochs, each
followed by one measurement of ``GeneralizationGap`` at its default of 1,024 samples per split, and times both. It
prints the medians, and the resulting duration of an epoch of 60,000 samples with one measurement.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import quiet
from benchmarks.workloads import WORKLOADS
from lightning_reg.callbacks import GeneralizationGap

SAMPLES = 60_000
EPOCH = 12  # timed steps


class Repeated(Dataset[tuple[Tensor, Tensor]]):
    """The samples of one batch, repeated."""

    def __init__(self, batch: tuple[Tensor, Tensor], count: int) -> None:
        self.inputs, self.labels = batch
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index % len(self.inputs)], self.labels[index % len(self.labels)]


class Timed(GeneralizationGap):
    """Records the duration of each measurement."""

    def __init__(self) -> None:
        super().__init__(verbose=False)
        self.seconds: list[float] = []

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the gap, and times the measurement."""
        start = time.perf_counter()
        super().on_validation_epoch_end(trainer, pl_module)
        if not trainer.sanity_checking:
            self.seconds.append(time.perf_counter() - start)


class Steps(Callback):
    """Records the duration of each step, including data loading."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._before = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Records the duration of a step."""
        now = time.perf_counter()
        if trainer.fit_loop.epoch_loop.batch_idx > 0:
            self.seconds.append(now - self._before)
        self._before = now


def measure(name: str, epochs: int) -> None:
    """Runs one workload and prints its line."""
    workload = WORKLOADS[name]()
    size = len(workload.batch[0])
    gap, steps = Timed(), Steps()
    with quiet():
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            callbacks=[gap, steps],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_train_batches=EPOCH,
            limit_val_batches=1,
            num_sanity_val_steps=0,
        )
        trainer.fit(
            workload,
            DataLoader(Repeated(workload.batch, SAMPLES), size),
            DataLoader(Repeated(workload.batch, 10_000), size),
        )
    step, measured = statistics.median(steps.seconds), statistics.median(gap.seconds)
    ratio = 1 + measured / (step * SAMPLES / size)
    print(
        f"{name}: a step of {size} takes {step * 1e3:.1f} ms, a measurement {measured:.2f} s, as {measured / step:.1f} "
        f"steps; an epoch of {SAMPLES:,} samples takes {ratio:.3f} × as long"
    )


def main() -> None:
    """Prints a line per workload."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload", choices=list(WORKLOADS), nargs="*", default=["mlp", "cnn"])
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in options.workload:
        measure(name, options.epochs)


if __name__ == "__main__":
    main()
