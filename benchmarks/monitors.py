"""Cost of all monitors together at their default intervals.

``python -m benchmarks monitors`` trains each workload for a hundred steps, with and without ``GradientMonitor``,
``ActivationStats`` and ``WeightDistribution`` at their defaults, alternating between fits, with TensorBoard as the
logger. The timed steps include a representative share of steps that log. ``GeneralizationGap`` measures once per epoch
and is timed by ``python -m benchmarks.measuring``.
"""

import tempfile
from collections.abc import Callable, Iterator

from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks.stopwatch import WARM_UP, step_time
from benchmarks.tables import Options, Table
from benchmarks.timing import median_ratio, quartiles
from benchmarks.workloads import WORKLOADS
from lightning_reg.callbacks import ActivationStats, GradientMonitor, WeightDistribution

MEMBERS: dict[str, Callable[[], list[Callback]]] = {
    "none": list,
    "GradientMonitor": lambda: [GradientMonitor()],
    "ActivationStats": lambda: [ActivationStats()],
    "WeightDistribution": lambda: [WeightDistribution()],
    "all of them": lambda: [GradientMonitor(), ActivationStats(), WeightDistribution()],
}


def tables(options: Options) -> Iterator[Table]:
    """Yields one table per workload."""
    for workload in ["tiny"] if options.smallest else ["mlp"] if options.quick else ["mlp", "cnn"]:
        yield _table(workload, options)


def _table(workload: str, options: Options) -> Table:
    # Enough steps for the least frequent monitor to log once, after the warm-up.
    steps = WARM_UP + (4 if options.smallest else 100) + 1
    seconds: dict[str, list[float]] = {name: [] for name in MEMBERS}
    for _ in range(options.rounds(5, 1)):
        for name, make in MEMBERS.items():
            module = WORKLOADS[workload]()
            with tempfile.TemporaryDirectory() as folder:
                seconds[name].append(
                    step_time(
                        module,
                        module.batch,
                        steps=steps,
                        device=options.device,
                        callbacks=make(),
                        logger=TensorBoardLogger(folder),
                    )
                )
    table = Table(f"Monitors at their defaults: {workload}", ["monitors", "ms a step", "quartiles", "× none"])
    for name, times in seconds.items():
        low, median, high = (1e3 * value for value in quartiles(times))
        ratio = None if name == "none" else f"{median_ratio(times, seconds['none']):.3f}"
        table.add(name, median, f"{low:.1f} to {high:.1f}", ratio)
    return table
