"""One epoch of pictures: our loader beside the usual per-sample one.

``python -m benchmarks.data_loading`` prints both times and their ratio. The pictures are random bytes of MNIST's shape;
what they show makes no difference to the time. The usual loader is torchvision's MNIST as its documentation uses it:
a PIL image a sample, ``transforms.Compose([ToTensor(), Normalize(...)])``, and the default collation. Ours includes
what it leaves to the device: conversion to float and normalization.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lightning_reg.data.loader import ResumableLoader, SampleDataset, ShuffledSampler, as_fetched
from lightning_reg.transforms import normalize_pictures

MEAN, STD = 0.1307, 0.3081


class UsualDataset(Dataset[tuple[Tensor, int]]):
    """What torchvision's MNIST does for each sample."""

    def __init__(self, images: np.ndarray, labels: list[int]) -> None:
        self.images = images
        self.labels = labels
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def usual_epoch(images: Tensor, labels: Tensor, batch_size: int, workers: int) -> Callable[[], float]:
    """Returns an epoch of the usual loader, which returns the sum of what it saw."""
    dataset = UsualDataset(images[:, 0].numpy(), labels.tolist())
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, num_workers=workers)
    return lambda: summed(pictures for pictures, _ in loader)


def our_epoch(images: Tensor, labels: Tensor, batch_size: int) -> Callable[[], float]:
    """Returns an epoch of our loader, which returns the sum of what it saw."""
    dataset = SampleDataset(images, labels)
    loader = ResumableLoader(
        dataset,
        sampler=ShuffledSampler(dataset, num_replicas=1, rank=0, seed=0),
        batch_size=batch_size,
        collate_fn=as_fetched,
    )
    mean, std = torch.tensor([MEAN]), torch.tensor([STD])
    return lambda: summed(normalize_pictures(pictures, mean, std) for pictures, _ in loader)


def summed(batches: Iterable[Tensor]) -> float:
    """Reads every batch, so that nothing is left undone."""
    return float(torch.stack([batch.sum(dtype=torch.float64) for batch in batches]).sum())


def seconds(epoch: Callable[[], float]) -> tuple[float, float]:
    """Returns the time of one epoch and what it returned."""
    start = time.perf_counter()
    result = epoch()
    return time.perf_counter() - start, result


def main() -> None:
    """Measures alternately, so that drift of the machine cancels, and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=60_000, help="pictures of 28×28")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5, help="epochs of each; the median counts")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of the usual loader")
    options = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.samples, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (options.samples,), generator=generator)
    epochs = {
        "usual": usual_epoch(images, labels, options.batch_size, options.workers),
        "ours": our_epoch(images, labels, options.batch_size),
    }
    times: dict[str, list[float]] = {name: [] for name in epochs}
    sums = {}
    for _ in range(options.repeats):
        for name, epoch in epochs.items():
            elapsed, sums[name] = seconds(epoch)
            times[name].append(elapsed)
    # Rounding in float32 of numbers up to 3; both loaders delivered the same pictures.
    if abs(sums["usual"] - sums["ours"]) > 1e-5 * images.numel():
        raise RuntimeError(f"the loaders delivered different pictures: {sums}")

    print(
        f"An epoch of {options.samples:,} pictures of 28×28, batches of {options.batch_size}, torch {torch.__version__}"
    )
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"  {name:<6} {medians[name]:8.3f} s   ({min(values):.3f} to {max(values):.3f})")
    ratio = medians["ours"] / medians["usual"]
    print(f"  ratio  {ratio:8.4f}     ({1 / ratio:.1f} times as fast)")


if __name__ == "__main__":
    main()
