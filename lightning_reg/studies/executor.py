"""Where tasks are done: in processes of this machine, or on the machines of a Ray cluster."""

import contextlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeVar

from typing_extensions import Self, override

from lightning_reg.settings import SettingError, check_count, check_range

__all__ = ["Executor", "LocalExecutor", "RayExecutor", "WorkerDiedError"]

T = TypeVar("T")


class WorkerDiedError(RuntimeError):
    """The process that did a task is gone: killed, out of memory, or its machine is."""


class Executor(ABC):
    """Does tasks in processes that stay warm, so that imports are paid once; nothing is started before the first task.

    As a context manager it waits for its processes to end, or ends them at once if an exception is on its way.
    """

    is_local: bool
    """Whether tasks see the files of this machine."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many tasks are done at once; more that are submitted wait."""

    @abstractmethod
    def submit(self, task: Callable[..., T], /, *arguments: Any) -> "Future[T]":
        """Returns the future of ``task(*arguments)``, done in some process.

        Args:
            task: A function of a module, which the process imports.
            arguments: Anything that can be pickled.

        Returns:
            What raises :class:`WorkerDiedError` if the process dies, and the task's own error otherwise.
        """

    @abstractmethod
    def close(self, *, at_once: bool = False) -> None:
        """Ends all processes.

        Args:
            at_once: Whether to kill what is running instead of waiting for it.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(at_once=kind is not None)


class LocalExecutor(Executor):
    """Tasks on this machine.

    There is one pool of a single worker for each slot rather than one pool of many, because a pool breaks as a whole
    when one of its workers is killed. Workers end within moments of this process, also if that is killed: each watches
    a pipe that nobody ever writes to and whose other end is open here alone.

    Args:
        jobs: How many tasks are done at once, each with its share of the cores.
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
        # One thread a slot: it waits for the slot's process, and so tasks queue up, start and end by futures.
        self._threads = ThreadPoolExecutor(jobs, initializer=_block_interrupts)

    @property
    @override
    def slots(self) -> int:
        return len(self._workers)

    @override
    def submit(self, task: Callable[..., T], /, *arguments: Any) -> "Future[T]":
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
            self._held.close()  # which ends every worker, also one that is just being started
            self._threads.shutdown()
            for worker in self._workers:
                worker.shut_down()
            self._watched.close()


class _Worker:
    """A process that does one task at a time, and is made anew when it has died."""

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

    def _begin(self, task: Callable[..., T], arguments: tuple[Any, ...]) -> "Future[T]":
        if self._pool is not None:
            try:
                return self._pool.submit(task, *arguments)
            except BrokenProcessPool:  # it died between two tasks, which is no task's fault
                self._end_group()
                self.shut_down()
        self._pool = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(self._lifeline, self._threads)
        )
        self._pid = self._pool.submit(os.getpid)
        return self._pool.submit(task, *arguments)

    def _end_group(self) -> None:
        """Ends what a process that was killed had started."""
        if self._pid is not None and self._pid.exception() is None and hasattr(os, "killpg"):
            with contextlib.suppress(OSError):  # it had started nothing
                os.killpg(self._pid.result(), signal.SIGKILL)

    def shut_down(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _block_interrupts() -> None:
    """Keeps Ctrl-C from processes that this thread starts, which would be loud about it while they import."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _start_worker(lifeline: Connection, threads: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever submits tasks decides when they end
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # with what tasks start, loaders' workers and the like, so that all of it can be ended
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    if threads is not None:
        _use_threads(threads)


def _use_threads(count: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(count)  # by which numpy and torch go when they are imported
    if "torch" in sys.modules:  # by the main module, or an earlier task
        sys.modules["torch"].set_num_threads(count)


def _end_with(lifeline: Connection) -> None:
    with contextlib.suppress(OSError):
        lifeline.poll(None)  # returns when the other end is closed, by its owner or by the kernel
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


class RayExecutor(Executor):
    """Tasks on the machines of a Ray cluster, one a core.

    Tasks start in the current folder where a machine has it, and hand back what they return: no file system has to be
    shared. Those of a machine that is lost are done again on another.

    Args:
        address: ``auto`` for the cluster that this machine belongs to, ``HOST:PORT``, or ``local`` for one of this
            machine alone that ends with the executor.
        gpus_per_run: How many GPUs a task has, a fraction if several share one; 0 for the CPU.

    Raises:
        SettingError: If Ray isn't installed, there is no such cluster, or none of its machines has that many GPUs.
    """

    is_local = False

    def __init__(self, address: str = "auto", *, gpus_per_run: float = 0) -> None:
        check_range("gpus_per_run", gpus_per_run, low=0)
        try:
            import ray
        except ImportError as error:
            raise SettingError("cluster needs Ray; install it by pip install 'lightning-reg[cluster]'") from error
        self._ray: Any = ray
        self._unfinished: dict[Future[Any], Any] = {}
        self._gpus = gpus_per_run
        self._owns_connection = not ray.is_initialized()
        if self._owns_connection:
            try:
                _check_reachable(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError, OSError) as error:
                reason = str(error).strip().partition("\n")[0]
                raise SettingError(
                    f"cluster must be auto or the address of a running Ray cluster, but is {address!r}: {reason}"
                ) from error
        if not any(map(self._fitting, self._ray.nodes())):
            self.close()
            raise SettingError(f"gpus_per_run must be at most what a machine of the cluster has, but is {gpus_per_run}")
        # A task is done again if its machine is lost, three times at the most, lest one that kills machines kills all.
        self._task = self._ray.remote(num_cpus=1, num_gpus=gpus_per_run, max_retries=3)(_do_there)

    def _fitting(self, node: Mapping[str, Any]) -> int:
        """Returns how many tasks a machine can do at once."""
        resources = node["Resources"]
        fitting = [resources.get("CPU", 0.0)] + ([resources.get("GPU", 0.0) / self._gpus] if self._gpus else [])
        return int(min(fitting)) if node["Alive"] else 0

    @property
    @override
    def slots(self) -> int:
        return max(sum(map(self._fitting, self._ray.nodes())), 1)

    @override
    def submit(self, task: Callable[..., T], /, *arguments: Any) -> "Future[T]":
        reference = self._task.remote(os.getcwd(), task, arguments)
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        self._unfinished[future] = reference
        reference.future().add_done_callback(lambda ended: self._hand_over(ended, future))
        return future

    def _hand_over(self, ended: "Future[T]", future: "Future[T]") -> None:
        self._unfinished.pop(future, None)
        error = ended.exception()
        exceptions = self._ray.exceptions
        with contextlib.suppress(InvalidStateError):  # it was given up meanwhile
            if error is None:
                future.set_result(ended.result())
            elif isinstance(error, exceptions.RayError) and not isinstance(error, exceptions.RayTaskError):
                future.set_exception(WorkerDiedError("the process that did it was killed, or its machine is gone"))
            else:
                future.set_exception(getattr(error, "cause", error))

    @override
    def close(self, *, at_once: bool = False) -> None:
        unfinished, self._unfinished = self._unfinished, {}
        for future, reference in unfinished.items():
            if at_once:
                self._ray.cancel(reference, force=True)
                with contextlib.suppress(InvalidStateError):  # it has just ended
                    future.set_exception(WorkerDiedError("the executor was closed"))
            else:
                self._ray.wait([reference])
        if self._owns_connection:
            self._owns_connection = False
            self._ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises if nobody answers at an address, for which Ray itself would wait minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ValueError("it must be auto, local or HOST:PORT")
    with socket.create_connection((host, int(port)), timeout=5):
        pass


def _do_there(folder: str, task: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    _use_threads(1)  # it has one core; Ray says so itself only where the machine's environment says nothing else
    with contextlib.suppress(OSError):
        os.chdir(folder)
    return task(*arguments)
