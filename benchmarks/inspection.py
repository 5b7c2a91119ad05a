"""Time to log the weights of a ResNet-50, and to compute statistics of activations.

``python -m benchmarks inspection`` logs statistics and a histogram of every parameter of a ResNet-50 (23.5 M weights in
161 tensors) by ``WeightDistribution``, compared with the histogram alone by ``SummaryWriter.add_histogram``. Then it
times several ways to compute statistics of a map of activations, including fastai's ``ActivationStats`` if fastai is
installed.
"""

import importlib
import tempfile
from collections.abc import Callable, Iterator

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from benchmarks.tables import Options, Table
from benchmarks.timing import alternate, median_ratio, quartiles, quiet
from benchmarks.workloads import WORKLOADS
from lightning_reg.callbacks import WeightDistribution
from lightning_reg.core.step import Run
from lightning_reg.functional.measures.activations import unit_sums
from lightning_reg.functional.measures.histograms import fine_histogram

ADD_HISTOGRAM = "SummaryWriter.add_histogram, histogram alone"
ONE_READ = "one read: its sum"


def tables(options: Options) -> Iterator[Table]:
    """Yields a table of weights and one of activations."""
    with tempfile.TemporaryDirectory() as folder:
        yield _weights(folder, options)
    yield _activations(options)


def _weights(folder: str, options: Options) -> Table:
    network = "tiny" if options.smallest else "resnet50"
    workload = WORKLOADS[network]().to(options.device)
    logger = TensorBoardLogger(folder)
    with quiet():
        trainer = Trainer(accelerator="cpu", logger=logger, enable_checkpointing=False, enable_progress_bar=False)

    def add_histogram() -> None:
        for name, parameter in workload.named_parameters():
            logger.experiment.add_histogram(name, parameter, 0)

    calls: dict[str, Callable[[], object]] = {ADD_HISTOGRAM: add_histogram}
    for name, bins in (("WeightDistribution", 64), ("WeightDistribution(histogram_bins=0)", 0)):
        distribution = WeightDistribution(max_parameters=1_000, histogram_bins=bins)
        trainer.callbacks = [distribution]  # type: ignore[attr-defined]  # set outside the class
        session = distribution.new_session(Run(trainer, workload))
        calls[name] = lambda session=session: session.log(session.parameters())  # type: ignore[misc]
    seconds = alternate(calls, rounds=options.rounds(9, 2), device=options.device)
    logger.finalize("success")
    return _table(f"Logging every parameter: {network}", seconds, ADD_HISTOGRAM)


def _activations(options: Options) -> Table:
    shape = (2, 4, 8, 8) if options.smallest else (64, 32, 32, 32)
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu().to(options.device)

    def by_hand() -> tuple[Tensor, ...]:
        return maps.mean(), maps.std(), (maps == 0).float().mean(), (maps.abs() < 1e-3).float().mean()

    def four_passes() -> tuple[Tensor, ...]:
        return maps.sum(), torch.linalg.vector_norm(maps), torch.count_nonzero(maps), torch.histc(maps, 64, -10, 10)

    calls: dict[str, Callable[[], object]] = {
        ONE_READ: maps.sum,
        "unit_sums": lambda: unit_sums(maps, 1),
        "unit_sums and fine_histogram": lambda: (unit_sums(maps, 1), fine_histogram(maps, most=131_072)),
        "mean, std and two shares by hand": by_hand,
        "sum, vector_norm, count_nonzero, histc": four_passes,
    }
    try:
        calls["fastai's ActivationStats"] = fastai_hook(maps)
    except ImportError as error:
        print(f"fastai can't be imported ({error}); its ActivationStats is left out")
    seconds = alternate(calls, rounds=options.rounds(36, 8), device=options.device)
    return _table(f"Reading one map of {'×'.join(map(str, shape))}", seconds, ONE_READ)


def fastai_hook(maps: Tensor) -> Callable[[], object]:
    """Returns a call of fastai's ``ActivationStats`` hook on one output."""
    hook = importlib.import_module("fastai.callback.hook").ActivationStats(with_hist=True)
    module = nn.Identity()
    return lambda: hook.hook(module, maps, maps)


def _table(title: str, seconds: dict[str, list[float]], against: str) -> Table:
    table = Table(title, ["what", "ms", "quartiles", f"× {against}"])
    for name, times in seconds.items():
        low, median, high = (1e3 * value for value in quartiles(times))
        table.add(name, median, f"{low:.2f} to {high:.2f}", median_ratio(times, seconds[against]))
    return table
