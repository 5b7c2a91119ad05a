"""What all monitors together cost at their default cadence.

``python -m benchmarks monitors`` trains each workload for a hundred steps, with and without ``GradientMonitor``,
``ActivationStats`` and ``WeightDistribution`` at their defaults, in turns, a fit at a time, with TensorBoard as the
logger. Steps that log are among those that are timed, in their due share. ``GeneralizationGap`` measures once an epoch:
``python -m benchmarks.measuring`` times it.
"""

import tempfile
from collections.abc import Callable, Iterator

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from benchmarks.models import Stopwatch
from benchmarks.tables import Options, Table
from benchmarks.timing import median_ratio, quartiles, quiet
from benchmarks.workloads import WORKLOADS, Endless
from lightning_reg.callbacks import ActivationStats, GradientMonitor, WeightDistribution

MEMBERS: dict[str, Callable[[], list[Callback]]] = {
    "none": list,
    "GradientMonitor": lambda: [GradientMonitor()],
    "ActivationStats": lambda: [ActivationStats()],
    "WeightDistribution": lambda: [WeightDistribution()],
    "all of them": lambda: [GradientMonitor(), ActivationStats(), WeightDistribution()],
}


def tables(options: Options) -> Iterator[Table]:
    """Yields a table a workload.

    Args:
        options: How to run.
    """
    for workload in ["tiny"] if options.smallest else ["mlp"] if options.quick else ["mlp", "cnn"]:
        yield _table(workload, options)


def _table(workload: str, options: Options) -> Table:
    # As many steps as the rarest monitor needs to log once, and those that warm up.
    steps = Stopwatch.WARM_UP + (4 if options.smallest else 100) + 1
    seconds: dict[str, list[float]] = {name: [] for name in MEMBERS}
    for _ in range(options.rounds(5, 1)):
        for name, make in MEMBERS.items():
            seconds[name].append(_step_time(workload, make(), steps, options))
    table = Table(f"Monitors at their defaults: {workload}", ["monitors", "ms a step", "quartiles", "× none"])
    for name, times in seconds.items():
        low, median, high = (1e3 * value for value in quartiles(times))
        ratio = None if name == "none" else f"{median_ratio(times, seconds['none']):.3f}"
        table.add(name, median, f"{low:.1f} to {high:.1f}", ratio)
    return table


def _step_time(workload: str, monitors: list[Callback], steps: int, options: Options) -> float:
    watch = Stopwatch(options.device)
    module = WORKLOADS[workload]()
    batch = tuple(part.to(options.device) for part in module.batch)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu" if torch.device(options.device).type == "cpu" else "gpu",
            devices=1,
            max_epochs=1,
            limit_train_batches=steps,
            limit_val_batches=0,
            callbacks=[*monitors, watch],
            logger=TensorBoardLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(Endless((batch[0], batch[1])), batch_size=None))
    return watch.seconds
