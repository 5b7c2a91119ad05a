"""Overhead of a search per trial: ``python -m benchmarks.search``.

A search on digits runs in this process, and its trials are timed as a whole and within the Trainer. The difference is
the sampler, parsing, the creation of module, data and trainer, and the storage of results.
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl

from lightning_reg.cli import main, options
from lightning_reg.search.trials.running import _Loop
from lightning_reg.studies.executor import InProcessExecutor


class _Clock:
    """Accumulates the time within some functions."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.inside = 0.0
        self.marks: list[tuple[float, float]] = []

    def timed(self, function: Any) -> Any:
        @functools.wraps(function)  # the command line inspects the signature
        def wrapped(*arguments: Any, **settings: Any) -> Any:
            start = self.clock()
            try:
                return function(*arguments, **settings)
            finally:
                self.inside += self.clock() - start

        return wrapped

    def marking(self, function: Any) -> Any:
        def wrapped(*arguments: Any, **settings: Any) -> Any:
            self.marks.append((self.clock(), self.inside))
            return function(*arguments, **settings)

        return wrapped


def measured(trials: int, clock: Callable[[], float]) -> list[float]:
    """Returns the seconds of each trial apart from fitting and validating, without the first five as warm-up."""
    watch = _Clock(clock)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(pl.Trainer, "fit", watch.timed(pl.Trainer.fit)),
        mock.patch.object(pl.Trainer, "validate", watch.timed(pl.Trainer.validate)),
        mock.patch.object(_Loop, "begin", watch.marking(_Loop.begin)),
        mock.patch.object(options, "LocalExecutor", return_value=InProcessExecutor()),
    ):
        words = ["configs/search/digits.yaml", "--quick", "--no-confirm", "--output", str(Path(folder) / "search")]
        main(["search", *words, "--trials", str(trials)])
    pairs = list(zip(watch.marks[:-1], watch.marks[1:], strict=True))
    return [end - start - (inside - before) for (start, before), (end, inside) in pairs][5:]


def run() -> None:
    """Prints the median and range of the overhead."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--cpu", action="store_true", help="count the process's own time, on a machine that is busy")
    given = parser.parse_args()
    found = measured(given.trials, time.process_time if given.cpu else time.perf_counter)
    print(
        f"beside fitting and validating, {len(found)} warm trials took {statistics.median(found):.3f} s each "
        f"(median; {min(found):.3f} to {max(found):.3f}), two splits each"
    )


if __name__ == "__main__":
    run()
