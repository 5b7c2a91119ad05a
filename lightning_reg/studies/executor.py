"""Executors, which run tasks in this process, or in other processes of this machine."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeVar

from typing_extensions import Self, override

from lightning_reg.settings import check_count

__all__ = ["Executor", "InProcessExecutor", "LocalExecutor", "WorkerDiedError", "use_threads"]

T = TypeVar("T")


class WorkerDiedError(RuntimeError):
    """Raised if the process of a task was killed, ran out of memory, or was on a machine that is lost."""


class Executor(ABC):
    """Base class of executors, which run tasks in reusable processes, so that imports happen only once.

    Processes are started with the first task. As a context manager it waits for its processes to end, or kills them if
    an exception was raised.
    """

    is_local: bool
    """Whether tasks can access the files of this machine."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """Number of tasks that run in parallel; further ones are queued."""

    @abstractmethod
    def submit(self, task: Callable[..., T], /, *arguments: Any) -> Future[T]:
        """Submits ``task(*arguments)`` for execution in a process.

        Args:
            task: Module-level function, which the process imports.
            arguments: Picklable arguments.

        Returns:
            A future that raises :class:`WorkerDiedError` if the process dies, and the task's own exception if it fails.
        """

    @abstractmethod
    def close(self, *, at_once: bool = False) -> None:
        """Ends all processes.

        Args:
            at_once: Whether to kill running tasks instead of waiting for them.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(at_once=kind is not None)


class InProcessExecutor(Executor):
    """Runs each task in this process when it is submitted."""

    is_local = True

    @property
    @override
    def slots(self) -> int:
        return 1

    @override
    def submit(self, task: Callable[..., T], /, *arguments: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(task(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    @override
    def close(self, *, at_once: bool = False) -> None:
        pass


class LocalExecutor(Executor):
    """Runs tasks in processes of this machine.

    Each slot is a pool with a single worker instead of one pool with many workers, because a whole pool breaks when one
    of its workers is killed. Workers end together with this process, even if it is killed: each watches a pipe that is
    never written to and whose other end is open only in this process.

    Args:
        jobs: Number of tasks that run in parallel, each with its share of the cores.
    """

    is_local = True

    def __init__(self, jobs: int = 1) -> None:
        check_count("jobs", jobs)
        self._watched, self._held = get_context("spawn").Pipe(duplex=False)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = None if jobs == 1 else max(cores // jobs, 1)
        self._workers = [_Worker(self._watched, threads) for _ in range(jobs)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        # One thread per slot waits for the slot's process, which provides a queue and futures.
        self._threads = ThreadPoolExecutor(jobs, initializer=_block_interrupts)

    @property
    @override
    def slots(self) -> int:
        return len(self._workers)

    @override
    def submit(self, task: Callable[..., T], /, *arguments: Any) -> Future[T]:
        return self._threads.submit(self._do, task, arguments)

    def _do(self, task: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        worker = self._idle.get()
        try:
            return worker.do(task, arguments)
        finally:
            self._idle.put(worker)

    @override
    def close(self, *, at_once: bool = False) -> None:
        try:
            self._threads.shutdown(wait=not at_once, cancel_futures=at_once)
            if not at_once:
                for worker in self._workers:
                    worker.shut_down()
        finally:
            self._held.close()  # ends every worker, including one that is just starting
            self._threads.shutdown()
            for worker in self._workers:
                worker.shut_down()
            self._watched.close()


class _Worker:
    """A process that runs one task at a time, and is restarted when it has died."""

    def __init__(self, lifeline: Connection, threads: int | None) -> None:
        self._lifeline = lifeline
        self._threads = threads
        self._pool: ProcessPoolExecutor | None = None
        self._pid: Future[int] | None = None

    def do(self, task: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        try:
            return self._begin(task, arguments).result()
        except BrokenProcessPool as error:
            self._end_group()
            self.shut_down()
            raise WorkerDiedError("the process that did it was killed") from error

    def _begin(self, task: Callable[..., T], arguments: tuple[Any, ...]) -> Future[T]:
        if self._pool is not None:
            try:
                return self._pool.submit(task, *arguments)
            except BrokenProcessPool:  # it died between two tasks, so no task has failed
                self._end_group()
                self.shut_down()
        self._pool = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(self._lifeline, self._threads)
        )
        self._pid = self._pool.submit(os.getpid)
        return self._pool.submit(task, *arguments)

    def _end_group(self) -> None:
        """Kills the child processes of a worker that was killed."""
        if self._pid is not None and self._pid.exception() is None and hasattr(os, "killpg"):
            with contextlib.suppress(OSError):  # it had no child processes
                os.killpg(self._pid.result(), signal.SIGKILL)

    def shut_down(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _block_interrupts() -> None:
    """Blocks Ctrl-C in processes that this thread starts, which would print tracebacks during their imports."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _start_worker(lifeline: Connection, threads: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the submitting process decides when tasks end
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # a group with the tasks' children, such as data-loading workers, so that all can be killed
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    if threads is not None:
        use_threads(threads)


def use_threads(count: int) -> None:
    """Sets the number of threads for computations in this process."""
    os.environ["OMP_NUM_THREADS"] = str(count)  # numpy and torch read it when they are imported
    if "torch" in sys.modules:  # imported by the main module, or an earlier task
        sys.modules["torch"].set_num_threads(count)


def _end_with(lifeline: Connection) -> None:
    with contextlib.suppress(OSError):
        lifeline.poll(None)  # returns when the other end is closed, by its owner or by the kernel
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
