"""Doing the runs of a study, and keeping what comes of them."""

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
"""Does a run; its files go into the folder. A function of a module, so that processes can be handed it."""

_LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Attempt:
    """What came of a run, in plain values: errors of other packages can't all be pickled.

    Attributes:
        result: The text of its file; None where it failed.
        message: Why it failed, in one line.
        is_disk_full: Whether that was why, on the machine that did it.
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
    """Does all runs that have no result yet, and returns those that failed.

    Args:
        runs: In the order that they are started in.
        store: Where results go; this process has to hold its lock.
        executor: Where they are done; its processes are ended if this raises.
        metric: That every run has to measure; whatever it is where None.
        quiet: Whether the progress bar is left out.

    Raises:
        SettingError: If the disk is full, or a metric that was asked for isn't measured.
        KeyboardInterrupt: When interrupted; what is finished is kept.
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
    """Returns the future of a run, which tells whatever ended it.

    Args:
        run: That is done; its folder is there.
    """
    if executor.is_local:
        return executor.submit(_attempt, perform, run, store.run_folder(run))
    return executor.submit(_attempt, perform, self_contained(run), None)


def _attempt(perform: Perform, run: Run, folder: Path | None) -> Attempt:
    """Does a run wherever this is; without a folder in a temporary one."""
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
    """Returns what came of a run, also where the process that did it is gone.

    Args:
        future: By :func:`submit`, done.
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
    if metric is not None and result is not None:  # one run tells, and the others needn't be waited for
        check_choice("metric", metric, list(result.metrics))
    return None


def _one_line(error: BaseException) -> str:
    foreseen = first_in_chain(error, (SettingError,))
    text = " ".join(str(foreseen or error).split())
    named = text if foreseen and text else f"{type(error).__name__}: {text}"
    return named if len(named) <= _LONGEST_MESSAGE else f"{named[: _LONGEST_MESSAGE - 3]}..."
