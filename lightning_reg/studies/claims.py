"""Who does which run, where several processes, on one machine or many, share a folder."""

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Claim", "Claims"]

_NAME = re.compile(r"claim-(\d+)$")


class Claim:
    """A run that is ours for as long as the file that says so is touched again and again.

    Args:
        path: Of the file, that exists already.
        heartbeat: Seconds between two touches.
    """

    def __init__(self, path: Path, heartbeat: float) -> None:
        self._path = path
        self._heartbeat = heartbeat
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    @property
    def is_lost(self) -> bool:
        """Whether another process took the run over, because we weren't heard of for too long."""
        return _generation(self._path.parent) != _number(self._path)

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat):
            with contextlib.suppress(OSError):  # the folder may be out of reach for a while
                os.utime(self._path)

    def __enter__(self) -> "Claim":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        own = _number(self._path)
        if self.is_lost:
            return  # what lies there belongs to others
        for path, number in sorted(_claims(self._path.parent), key=lambda each: each[1]):
            if number <= own:
                path.unlink(missing_ok=True)


class Claims:
    """Takes runs, also from processes that have died.

    A claim is a file that only one process can create. A dead one isn't removed, which two could do at once, the slower
    one removing the claim that the faster one has just made; it is outnumbered: ``claim-1`` stands above ``claim-0``,
    and again only one process can create it.

    Args:
        stale_after: Seconds without a touch after which a claim is dead. Measured by our own clock from when we first
            saw it untouched, because clocks differ between machines.
        heartbeat: Seconds between two touches of ours.
    """

    def __init__(self, *, stale_after: float = 60.0, heartbeat: float = 10.0) -> None:
        self._stale_after = stale_after
        self._heartbeat = heartbeat
        self._seen: dict[Path, tuple[int, float]] = {}  # by file: when it was touched, and when we first saw that

    def take(self, folder: Path) -> Claim | None:
        """Returns a claim on a folder; None where another process has one.

        Args:
            folder: Of the run; made if it isn't there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        generation = _generation(folder)
        if generation >= 0 and not self._is_dead(folder / f"claim-{generation}"):
            return None
        path = folder / f"claim-{generation + 1}"
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return None
        try:
            os.write(descriptor, json.dumps({"host": _host(), "pid": os.getpid()}).encode())
        except OSError:
            path.unlink(missing_ok=True)  # a claim that says nothing would have to grow old first
            raise
        finally:
            os.close(descriptor)
        return Claim(path, self._heartbeat)

    def _is_dead(self, path: Path) -> bool:
        try:
            touched = path.stat().st_mtime_ns
            owner = _read(path)
        except OSError:
            return False  # it has just been given back; next time it is free
        now = time.monotonic()
        before = self._seen.get(path)
        if before is None or before[0] != touched:
            self._seen[path] = before = (touched, now)
        if now - before[1] > self._stale_after:
            return True
        is_here = owner.get("host") == _host()
        return is_here and isinstance(owner.get("pid"), int) and not _is_alive(owner["pid"])


def _host() -> str:
    """Returns what tells where a process number means the same: containers may be called alike."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError:  # made, but not written yet
        return {}
    return content if isinstance(content, dict) else {}


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # where asking would interrupt it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def _number(path: Path) -> int:
    match = _NAME.match(path.name)
    return int(match[1]) if match else -1


def _claims(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in folder.glob("claim-*"):
        if _NAME.match(path.name):
            yield path, _number(path)


def _generation(folder: Path) -> int:
    return max((number for _, number in _claims(folder)), default=-1)
