"""What it takes to log the weights of a ResNet-50, and how fast activations are read.

``python -m benchmarks.inspection`` logs statistics and a histogram of every parameter of a ResNet-50 (25.6 M weights in
161 tensors) by ``WeightDistribution``, and beside it the histogram alone by ``SummaryWriter.add_histogram``, in
alternation, so that drift of the machine cancels. Then it times one call each of what can be said of a map of
activations (64×32×32×32), and fastai's ``ActivationStats`` where fastai is installed. ``--quick`` takes a few seconds.
"""

import argparse
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from benchmarks.overhead import Workload, resnet50
from lightning_reg.callbacks import WeightDistribution
from lightning_reg.functional.activations import unit_sums
from lightning_reg.functional.histograms import fine_histogram


def alternated(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, one after the other; the first round is warm-up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def print_times(times: dict[str, list[float]], against: str) -> None:
    """One line a call."""
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, times[against], strict=True))
        print(f"  {name:<48} {statistics.median(seconds) * 1e3:9.2f} ms   {ratio:6.2f} of it")


def weights(folder: str, rounds: int) -> None:
    """``WeightDistribution`` beside ``add_histogram``."""
    workload: Workload = resnet50()
    logger = TensorBoardLogger(folder)
    trainer = Trainer(accelerator="cpu", logger=logger, enable_checkpointing=False, enable_progress_bar=False)

    def add_histogram() -> None:
        for name, parameter in workload.named_parameters():
            logger.experiment.add_histogram(name, parameter, 0)

    calls: dict[str, Callable[[], object]] = {"SummaryWriter.add_histogram, histogram alone": add_histogram}
    for name, bins in (("WeightDistribution", 64), ("WeightDistribution(histogram_bins=0)", 0)):
        distribution = WeightDistribution(max_parameters=1_000, histogram_bins=bins)
        trainer.callbacks = [distribution]  # type: ignore[attr-defined]  # set outside the class
        distribution.attach(trainer, workload)
        calls[name] = lambda distribution=distribution: distribution._log(trainer)  # type: ignore[misc]
    print(f"Every parameter of a ResNet-50 (torch {torch.__version__}, {torch.get_num_threads()} threads)")
    print_times(alternated(calls, rounds), "SummaryWriter.add_histogram, histogram alone")
    logger.finalize("success")


def activations(rounds: int) -> None:
    """What can be said of one map."""
    maps = torch.randn(64, 32, 32, 32, generator=torch.Generator().manual_seed(0)).relu()

    def by_hand() -> tuple[Tensor, ...]:
        return maps.mean(), maps.std(), (maps == 0).float().mean(), (maps.abs() < 1e-3).float().mean()

    def four_passes() -> tuple[Tensor, ...]:
        return maps.sum(), torch.linalg.vector_norm(maps), torch.count_nonzero(maps), torch.histc(maps, 64, -10, 10)

    calls: dict[str, Callable[[], object]] = {
        "one read: its sum": maps.sum,
        "unit_sums": lambda: unit_sums(maps, 1),
        "unit_sums and fine_histogram": lambda: (unit_sums(maps, 1), fine_histogram(maps, most=131_072)),
        "mean, std and two shares by hand": by_hand,
        "sum, vector_norm, count_nonzero, histc": four_passes,
    }
    try:
        calls["fastai's ActivationStats"] = fastai_hook(maps)
    except ImportError as error:
        print(f"\nfastai can't be imported ({error}); its ActivationStats is left out")
    print("\nOne map of 64×32×32×32")
    print_times(alternated(calls, 4 * rounds), "one read: its sum")


def fastai_hook(maps: Tensor) -> Callable[[], object]:
    """What its callback does with one output."""
    hook = importlib.import_module("fastai.callback.hook").ActivationStats(with_hist=True)
    module = nn.Identity()
    return lambda: hook.hook(module, maps, maps)


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    rounds = 2 if options.quick else 9
    with tempfile.TemporaryDirectory() as folder:
        weights(folder, rounds)
    activations(rounds)


if __name__ == "__main__":
    main()
