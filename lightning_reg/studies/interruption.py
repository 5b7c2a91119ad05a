"""When Ctrl-C may interrupt: not while something is half done that nobody could finish."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["deferred_interrupts", "ignored_interrupts"]

_Handler = Callable[[int, Any], Any]


@contextlib.contextmanager
def ignored_interrupts() -> Iterator[None]:
    """Ignores Ctrl-C, here and in processes that are started within, which go on ignoring it until they say otherwise.

    Only the main thread can decide on signals; in others this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled_by(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Lets Ctrl-C wait for the end, or for a part that it may interrupt.

    Where the process doesn't make an exception of Ctrl-C, or in another thread than the main one, this does nothing.

    Yields:
        What makes such a part: ``with interruptible(): ...``.

    >>> try:
    ...     with deferred_interrupts() as interruptible:
    ...         signal.raise_signal(signal.SIGINT)
    ...         print("taken")
    ...         try:
    ...             with interruptible():
    ...                 print("never printed")
    ...         finally:
    ...             print("given back")
    ... except KeyboardInterrupt:
    ...     print("interrupted")
    taken
    given back
    interrupted
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield contextlib.nullcontext
        return
    interrupts: list[tuple[int, Any]] = []

    def wait(number: int, frame: Any) -> None:
        interrupts.append((number, frame))

    def deliver() -> None:
        if interrupts:
            handler(*interrupts.pop())

    @contextlib.contextmanager
    def interruptible() -> Iterator[None]:
        with _handled_by(handler):
            deliver()
            yield

    try:
        with _handled_by(wait):
            yield interruptible
    finally:
        deliver()


@contextlib.contextmanager
def _handled_by(handler: _Handler | signal.Handlers) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
