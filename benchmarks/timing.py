"""Times of alternatives, taken in turns so that drift of the machine cancels."""

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
    """Calls every member once a round, in changing order, and returns the seconds of each call.

    Args:
        members: Functions to call, by name.
        rounds: Number of rounds that are counted; one before them warms up.
        device: Device that the calls leave work on.
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
    """Waits until a device has done what it was given.

    Args:
        device: Device of torch.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def quiet() -> Iterator[None]:
    """What Lightning says and warns of isn't shown."""
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
    """Returns the lower quartile, the median and the upper quartile.

    Args:
        values: At least one.
    """
    if len(values) < 2:
        return (values[0],) * 3
    low, median, high = statistics.quantiles(values, n=4)
    return low, median, high


def median_ratio(some: list[float], others: list[float]) -> float:
    """Returns the median of the ratios of neighbors.

    Args:
        some: Numerators.
        others: Denominators, as many.
    """
    return statistics.median(a / b for a, b in zip(some, others, strict=True))


def peer(module: str, name: str) -> Any | None:
    """Returns something of another library, or None, saying so, where that isn't installed.

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
    """Returns bytes a second that a copy reads and writes, together.

    Args:
        device: Device of torch.
        numel: float32 numbers that are copied; more than any cache holds.
        rounds: Number of copies, of which the median counts.
    """
    source, target = torch.randn(numel, device=device), torch.empty(numel, device=device)
    times = alternate({"copy": lambda: target.copy_(source)}, rounds=rounds, device=device)["copy"]
    return 8 * numel / statistics.median(times)
