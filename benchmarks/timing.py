"""Timing of alternatives in turns, so that drift of the machine cancels out."""

import importlib
import logging
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["alternate", "copy_bandwidth", "median_ratio", "peer", "quartiles", "quiet", "wait"]


def alternate(
    members: Mapping[str, Callable[[], object]], *, rounds: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Calls every member once per round, in random order, and returns the seconds of each call.

    Args:
        members: Functions to call, by name.
        rounds: Number of timed rounds, after one for warm-up.
        device: Device to synchronize with before and after each call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in members}
    for number in range(rounds + 1):
        for name in random.Random(number).sample(list(members), len(members)):
            wait(device)
            start = time.perf_counter()
            members[name]()
            wait(device)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def wait(device: str) -> None:
    """Waits until a device has finished all work.

    Args:
        device: Device of torch.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses warnings and Lightning's info messages."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            logger.setLevel(level)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Returns the lower quartile, the median and the upper quartile of at least one value."""
    if len(values) < 2:
        return (values[0],) * 3
    low, median, high = statistics.quantiles(values, n=4)
    return low, median, high


def median_ratio(some: list[float], others: list[float]) -> float:
    """Returns the median of the ratios of paired values.

    Args:
        some: Numerators.
        others: Denominators, as many as numerators.
    """
    return statistics.median(a / b for a, b in zip(some, others, strict=True))


def peer(module: str, name: str) -> Any | None:
    """Imports an object from another library; prints a message and returns None if that isn't installed.

    Args:
        module: Name of the library's module.
        name: Name of the object in it.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        print(f"{module} isn't installed: {name} is left out")
        return None


def copy_bandwidth(device: str = "cpu", *, numel: int = 32_000_000, rounds: int = 9) -> float:
    """Returns the bandwidth of a copy in bytes per second, reads and writes together.

    Args:
        device: Device of torch.
        numel: Number of float32 values to copy, larger than any cache.
        rounds: Number of copies, over which the median is taken.
    """
    source, target = torch.randn(numel, device=device), torch.empty(numel, device=device)
    times = alternate({"copy": lambda: target.copy_(source)}, rounds=rounds, device=device)["copy"]
    return 8 * numel / statistics.median(times)
