"""Execution of a study's runs, and storage of their results."""

import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path

from lightning_reg.settings import SettingError, check_choice, first_in_chain
from lightning_reg.studies.executor import Executor, WorkerDiedError
from lightning_reg.studies.outcome import Failure
from lightning_reg.studies.runs import Measured, Run, self_contained
from lightning_reg.studies.store import Store, full_disk, is_disk_full, result_text

__all__ = ["Attempt", "Perform", "attempt_of", "execute", "submit"]

Perform = Callable[[Run, Path], Measured]
"""Function that performs a run and writes its files into a folder; at module level, so that it can be pickled."""

_LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Attempt:
    """The outcome of a run as plain values, because not every exception can be pickled.

    Attributes:
        result: Text of the result file; None if the run failed.
        message: Reason of the failure, in one line.
        details: Traceback of the failure.
        is_disk_full: Whether the run failed because the disk of its machine was full.
    """

    result: str | None = None
    message: str = ""
    details: str = ""
    is_disk_full: bool = False


def execute(
    runs: Sequence[Run],
    store: Store,
    perform: Perform,
    executor: Executor,
    *,
    metric: str | None = None,
    quiet: bool = False,
) -> list[Failure]:
    """Performs all runs that have no result yet, and returns those that failed.

    Args:
        runs: Runs in the order in which they are started.
        store: Store for results; this process must hold its lock.
        perform: Function that performs a run.
        executor: Executor of runs; its processes are ended if an exception is raised.
        metric: Metric that every run must return; not checked if None.
        quiet: Whether to hide the progress bar.

    Raises:
        SettingError: If the disk is full, or the metric is missing from a result.
        KeyboardInterrupt: When interrupted; finished runs are kept.
    """
    from tqdm import tqdm

    pending = deque(run for run in runs if not store.has_result(run))
    running: dict[Future[Attempt], Run] = {}
    started: dict[str, Run] = {}
    failures: dict[str, Failure] = {}
    done = len(runs) - len(pending)
    try:
        with tqdm(total=len(runs), initial=done, desc=store.name, unit="run", disable=quiet, smoothing=0) as bar:
            while pending or running:
                while pending and len(running) < executor.slots:
                    run = pending.popleft()
                    started[run.key] = run
                    store.prepare(run)
                    running[submit(run, store, perform, executor)] = run
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    run = running.pop(future)
                    failure = _keep(attempt_of(future), run, store, metric)
                    del started[run.key]
                    if failure is not None:
                        failures[run.key] = failure
                    bar.update()
    except BaseException as error:
        executor.close(at_once=True)
        for run in started.values():
            if not store.has_result(run):
                store.discard(run)
        if isinstance(error, OSError) and is_disk_full(error, store.folder):
            raise full_disk(store.folder) from error
        raise
    return [failures[run.key] for run in runs if run.key in failures]


def submit(run: Run, store: Store, perform: Perform, executor: Executor) -> Future[Attempt]:
    """Submits a run and returns the future of its attempt.

    Args:
        run: The run, whose folder must exist.
        perform: Function that performs a run.
    """
    if executor.is_local:
        return executor.submit(_attempt, perform, run, store.run_folder(run))
    return executor.submit(_attempt, perform, self_contained(run), None)


def _attempt(perform: Perform, run: Run, folder: Path | None) -> Attempt:
    """Performs a run in this process, in a temporary folder if none is given."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="study-") as temporary:
            return _attempt(perform, run, Path(temporary))
    start = time.perf_counter()
    try:
        measured = perform(run, folder)
        return Attempt(result=result_text(run, measured, time.perf_counter() - start))
    except (Exception, SystemExit) as error:
        return Attempt(
            message=_one_line(error), details=traceback.format_exc(), is_disk_full=is_disk_full(error, folder)
        )


def attempt_of(future: Future[Attempt]) -> Attempt:
    """Returns the attempt at a run, also if its process has died.

    Args:
        future: Finished future, as returned by :func:`submit`.
    """
    try:
        return future.result()
    except WorkerDiedError as error:
        return Attempt(message=str(error))


def _keep(attempt: Attempt, run: Run, store: Store, metric: str | None) -> Failure | None:
    if attempt.is_disk_full:
        raise full_disk(store.folder)
    if attempt.result is None:
        store.write_failure(run, attempt.message, attempt.details)
        return Failure(run.variant, run.seed, attempt.message)
    store.write_result(run, attempt.result)
    result = store.result(run)
    if metric is not None and result is not None:  # checked after each run, without waiting for the others
        check_choice("metric", metric, list(result.metrics))
    return None


def _one_line(error: BaseException) -> str:
    foreseen = first_in_chain(error, (SettingError,))
    text = " ".join(str(foreseen or error).split())
    named = text if foreseen and text else f"{type(error).__name__}: {text}"
    return named if len(named) <= _LONGEST_MESSAGE else f"{named[: _LONGEST_MESSAGE - 3]}..."
