"""Memory of techniques, in copies of the weights.

``python -m benchmarks memory`` trains the MLP of 5.8 M weights for a few steps with each technique, and without any. On
a CPU every tensor that an operation creates is tracked until it is freed; on a GPU the device's allocator is queried.
``held`` is the memory between two steps beyond that of a bare run, the peak the memory within a step beyond it.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from benchmarks.tables import Options, Table
from benchmarks.timing import quiet
from benchmarks.workloads import WORKLOADS, Endless
from lightning_reg.callbacks import (
    ActivationStats,
    BestWeightsEarlyStopping,
    ElasticNetPenalty,
    ExponentialMovingAverage,
    GradientClipping,
    GradientMonitor,
    L2SPPenalty,
    Lookahead,
    SharpnessAwareMinimization,
    StochasticWeightAverage,
    WeightDistribution,
)

__all__ = ["TECHNIQUES", "Allocations"]

STEPS = 4

TECHNIQUES: dict[str, Callable[[], list[Callback]]] = {
    "BestWeightsEarlyStopping": lambda: [BestWeightsEarlyStopping("val_loss")],
    "ElasticNetPenalty": lambda: [ElasticNetPenalty(l1=1e-6, l2=1e-5)],
    "L2SPPenalty": lambda: [L2SPPenalty(weight=1e-5)],
    "GradientClipping": lambda: [GradientClipping(max_norm=1.0)],
    "GradientMonitor": lambda: [GradientMonitor(every_n_steps=1)],
    "GradientMonitor(update_ratio=True)": lambda: [GradientMonitor(every_n_steps=1, update_ratio=True)],
    "ExponentialMovingAverage": lambda: [ExponentialMovingAverage(decay=0.9)],
    "StochasticWeightAverage": lambda: [StochasticWeightAverage(start=0)],
    "Lookahead": lambda: [Lookahead(k=2)],
    "SharpnessAwareMinimization": lambda: [SharpnessAwareMinimization()],
}


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks the memory of every tensor that operations create on a CPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs an operation and tracks the tensors that it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self._alive[StorageWeakRef(storage)] = storage.nbytes()  # type: ignore[no-untyped-call]
        self.peak = max(self.peak, self.bytes())
        return result

    def bytes(self) -> int:
        """Returns the number of bytes in use."""
        self._alive = {
            storage: size
            for storage, size in self._alive.items()
            if not storage.expired()  # type: ignore[no-untyped-call]
        }
        return sum(self._alive.values())


class Meter:
    """Measures the memory held before the last step, and the peak within it."""

    def __init__(self, allocations: Allocations | None) -> None:
        self._allocations = allocations
        self.held = self.peak = 0

    def begin(self) -> None:
        """Records the held memory and resets the peak at the beginning of a step."""
        if self._allocations:
            self.held = self._allocations.bytes()
            self._allocations.peak = 0
        else:
            self.held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()

    def end(self) -> None:
        """Records the peak at the end of a step."""
        self.peak = self._allocations.peak if self._allocations else torch.cuda.max_memory_allocated()


class First(Callback):
    """The first callback, which starts the meter.

    Args:
        meter: Meter to start at the beginning of each step.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the meter."""
        self._meter.begin()


class Last(Callback):
    """The last callback, which stops the meter after all others have acted at the end of a step.

    Args:
        meter: Meter to stop at the end of each step.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Stops the meter."""
        self._meter.end()


def measured(callbacks: list[Callback], options: Options) -> tuple[int, int, int]:
    """Returns the bytes held between steps, the peak bytes, and the bytes of the weights."""
    workload = WORKLOADS["tiny" if options.smallest else "mlp"]()
    on_cpu = torch.device(options.device).type == "cpu"
    allocations = Allocations() if on_cpu else None
    meter = Meter(allocations)
    batch = tuple(part.to(options.device) for part in workload.batch)
    watched: AbstractContextManager[Any] = allocations if allocations else nullcontext()
    with quiet(), tempfile.TemporaryDirectory() as folder, watched:
        trainer = Trainer(
            accelerator="cpu" if on_cpu else "gpu",
            devices=1,
            max_epochs=3,
            limit_train_batches=STEPS,
            limit_val_batches=1,
            num_sanity_val_steps=0,
            callbacks=[First(meter), *callbacks, Last(meter)],
            logger=TensorBoardLogger(folder),  # otherwise monitors would compute no histograms
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = DataLoader(Endless((batch[0], batch[1])), batch_size=None)
        trainer.fit(workload, loader, loader)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in workload.parameters())
    return meter.held, meter.peak, weights


def tables(options: Options) -> Iterator[Table]:
    """Yields a table of techniques, and one of monitors."""
    held, peak, weights = measured([], options)
    table = Table(
        "Memory of techniques",
        ["technique", "held", "at the peak"],
        note=f"In copies of the weights ({weights / 1e6:.1f} MB), beyond what a bare run has; early stopping's copy "
        "lies in the host's memory.",
    )
    for name, make in TECHNIQUES.items():
        with_it = measured(make(), options)
        table.add(name, f"{(with_it[0] - held) / weights:.2f}", f"{(with_it[1] - peak) / weights:.2f}")
    yield table
    yield _monitors(held, peak, options)


def _monitors(held: int, peak: int, options: Options) -> Table:
    """Returns the table of monitors, whose memory grows with bins and layers, not with weights or activations."""
    table = Table(
        "Memory of monitors",
        ["monitor", "held, kB", "at the peak, kB"],
        note="Measuring at every step, beyond what a bare run has; the network has 5 modules and 6 parameters.",
    )
    for bins in (16, 64, 256):
        monitors: list[Callback] = [ActivationStats(every_n_steps=1, histogram_bins=bins)]
        for monitor in [*monitors, WeightDistribution(every_n_steps=1, histogram_bins=bins)]:
            with_it = measured([monitor], options)
            name = f"{type(monitor).__name__}(histogram_bins={bins})"
            table.add(name, f"{(with_it[0] - held) / 1e3:.1f}", f"{(with_it[1] - peak) / 1e3:.1f}")
    return table
