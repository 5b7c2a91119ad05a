"""An executor that runs tasks on the machines of a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

from typing_extensions import override

from lightning_reg.settings import SettingError, check_range
from lightning_reg.studies.executor import Executor, WorkerDiedError, use_threads

__all__ = ["RayExecutor"]

T = TypeVar("T")


class RayExecutor(Executor):
    """Runs tasks on the machines of a Ray cluster, one per core.

    Tasks start in the current folder if it exists on their machine, and results are returned without a shared file
    system. Tasks of a lost machine are repeated on another.

    Args:
        address: ``auto`` for the cluster that this machine belongs to, ``HOST:PORT``, or ``local`` for a temporary
            cluster of this machine alone.
        gpus_per_run: Number of GPUs per task, a fraction if several tasks share one; 0 for the CPU.

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
        # A task is repeated if its machine is lost, but at most three times: the task may be what kills machines.
        self._task = self._ray.remote(num_cpus=1, num_gpus=gpus_per_run, max_retries=3)(_do_there)

    def _fitting(self, node: Mapping[str, Any]) -> int:
        """Returns the number of tasks that a machine can run in parallel."""
        resources = node["Resources"]
        fitting = [resources.get("CPU", 0.0)] + ([resources.get("GPU", 0.0) / self._gpus] if self._gpus else [])
        return int(min(fitting)) if node["Alive"] else 0

    @property
    @override
    def slots(self) -> int:
        return max(sum(map(self._fitting, self._ray.nodes())), 1)

    @override
    def submit(self, task: Callable[..., T], /, *arguments: Any) -> Future[T]:
        reference = self._task.remote(os.getcwd(), task, arguments)
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        self._unfinished[future] = reference
        reference.future().add_done_callback(lambda ended: self._hand_over(ended, future))
        return future

    def _hand_over(self, ended: Future[T], future: Future[T]) -> None:
        self._unfinished.pop(future, None)
        error = ended.exception()
        exceptions = self._ray.exceptions
        with contextlib.suppress(InvalidStateError):  # it was canceled meanwhile
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
                with contextlib.suppress(InvalidStateError):  # it has just finished
                    future.set_exception(WorkerDiedError("the executor was closed"))
            else:
                self._ray.wait([reference])
        if self._owns_connection:
            self._owns_connection = False
            self._ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises if nothing listens at an address, for which Ray itself would wait minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ValueError("it must be auto, local or HOST:PORT")
    with socket.create_connection((host, int(port)), timeout=5):
        pass


def _do_there(folder: str, task: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    use_threads(1)  # the task has one core; Ray sets this only if the machine's environment doesn't
    with contextlib.suppress(OSError):
        os.chdir(folder)
    return task(*arguments)
