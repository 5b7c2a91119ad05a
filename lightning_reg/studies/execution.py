"""Doing the runs of a study: one after the other, or in processes, beside whoever else works on the folder."""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lightning_reg.settings import SettingError, check_choice, check_count, first_in_chain
from lightning_reg.studies.interruption import deferred_interrupts, ignored_interrupts
from lightning_reg.studies.outcome import Failure
from lightning_reg.studies.runs import Measured, Run
from lightning_reg.studies.store import Store

__all__ = ["Perform", "execute"]

Perform = Callable[[Run, Path], Measured]
"""Does a run; its files go into the folder. A function of a module, so that processes can be handed it."""

_LONGEST_MESSAGE = 300
_PATIENCE = 10.0  # seconds that processes have to end by themselves after Ctrl-C


def execute(
    runs: Sequence[Run],
    store: Store,
    perform: Perform,
    *,
    metric: str | None = None,
    jobs: int = 1,
    poll: float = 0.5,
    quiet: bool = False,
) -> list[Failure]:
    """Does all runs that have no result yet, and returns those that failed.

    Args:
        runs: In the order that they are done in.
        store: Where results go.
        perform: Does one.
        metric: That every run has to measure; whatever it is where None.
        jobs: In how many processes, each with its share of the cores.
        poll: Seconds between two looks at what others are doing.
        quiet: Whether the progress bar is left out.

    Raises:
        SettingError: If the disk is full, or a metric that was asked for isn't measured.
        KeyboardInterrupt: When interrupted; what is finished is kept.
    """
    from tqdm import tqdm

    check_count("jobs", jobs)
    failed_before = {run.key: store.failed_at(run) for run in runs}
    worker = _Worker(runs, store, perform, failed_before, metric, poll)
    with tqdm(
        total=len(runs),
        initial=sum(map(store.has_result, runs)),
        desc=store.name,
        unit="run",
        disable=quiet,
        smoothing=0,
    ) as bar:

        def show() -> None:
            bar.update(sum(map(worker.is_settled, runs)) - bar.n)

        unsettled = [run for run in runs if not worker.is_settled(run)]
        if jobs == 1 or len(unsettled) < 2:
            worker.work(show)
        else:
            _in_processes(worker, min(jobs, len(unsettled)), jobs, show)
        show()
    missing = {run.key: Failure(run.variant, run.seed, "the process that did it was killed") for run in runs}
    return [store.failure(run) or missing[run.key] for run in runs if not store.has_result(run)]


class _Worker:
    """Does whatever nobody else does, until all runs are settled."""

    def __init__(
        self,
        runs: Sequence[Run],
        store: Store,
        perform: Perform,
        failed_before: Mapping[str, int],
        metric: str | None,
        poll: float,
    ) -> None:
        self.runs = runs
        self.store = store
        self.perform = perform
        self.failed_before = failed_before
        self.metric = metric
        self.poll = poll

    def is_settled(self, run: Run) -> bool:
        """Whether a run has a result, or failed since this study was started; earlier failures are tried again."""
        return self.store.has_result(run) or self.store.failed_at(run) not in (0, self.failed_before[run.key])

    def work(self, show: Callable[[], None], is_over: Callable[[], bool] = lambda: False) -> None:
        """Does runs until all are settled.

        Args:
            show: Called when something may have changed.
            is_over: Whether to end before the next run.
        """
        pending = list(self.runs)
        while True:
            pending = [run for run in pending if not self.is_settled(run)]
            if not pending or is_over():
                return
            show()
            if not any(self._try(run) for run in pending):
                time.sleep(self.poll)  # others are at what is left

    def _try(self, run: Run) -> bool:
        """Does a run if nobody else does, and returns whether it was done."""
        try:
            with deferred_interrupts() as interruptible:  # lest a claim stays behind
                claim = self.store.claims.take(self.store.run_folder(run))
                if claim is None:
                    return False
                with claim, interruptible():
                    if self.is_settled(run):  # by who held it until just now
                        return True
                    self.store.clear(run)
                    self._do(run, lambda: claim.is_lost)
        except OSError as error:
            full = self.store.full(error)
            raise (full or error) from error
        return True

    def _do(self, run: Run, is_lost: Callable[[], bool]) -> None:
        start = time.perf_counter()
        try:
            measured = self.perform(run, self.store.run_folder(run))
        except (Exception, SystemExit) as error:
            full = self.store.full(error)
            if full is not None:
                raise full from error
            if not is_lost():
                self.store.write_failure(run, _one_line(error), traceback.format_exc())
        else:
            if not is_lost():
                self.store.write_result(run, measured, time.perf_counter() - start)
            if self.metric is not None:  # one run tells, and the others needn't be waited for
                check_choice("metric", self.metric, list(measured.metrics))


def _one_line(error: BaseException) -> str:
    foreseen = first_in_chain(error, (SettingError,))
    text = " ".join(str(foreseen or error).split())
    named = text if foreseen and text else f"{type(error).__name__}: {text}"
    return named if len(named) <= _LONGEST_MESSAGE else f"{named[: _LONGEST_MESSAGE - 3]}..."


def _in_processes(worker: _Worker, processes: int, jobs: int, show: Callable[[], None]) -> None:
    context = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    messages, over = context.SimpleQueue(), context.Event()
    # Not daemons: a run may start a process of its own.
    started: list[BaseProcess] = [
        context.Process(target=_process, args=(worker, max(cores // jobs, 1), messages, over)) for _ in range(processes)
    ]
    try:
        with ignored_interrupts():  # importing, processes would be loud
            for each in started:
                each.start()
        while any(each.is_alive() for each in started):
            time.sleep(worker.poll)
            show()
    except BaseException:
        over.set()
        _end(started)
        raise
    if not messages.empty():
        raise SettingError(messages.get())


def _end(processes: Sequence[BaseProcess]) -> None:
    """Waits for processes that Ctrl-C has reached, too, and ends the others."""
    deadline = time.monotonic() + _PATIENCE
    alive = [each for each in processes if each.pid is not None]
    while any(each.is_alive() for each in alive) and time.monotonic() < deadline:
        time.sleep(0.05)
    for each in alive:
        if each.is_alive():
            each.terminate()
        each.join()


def _process(worker: _Worker, threads: int, messages: Any, over: Any) -> None:
    import torch

    parent = multiprocessing.parent_process()
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        worker.work(lambda: None, lambda: over.is_set() or (parent is not None and not parent.is_alive()))
    except KeyboardInterrupt:
        return
    except SettingError as error:
        messages.put(str(error))
