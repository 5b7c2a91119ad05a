"""Storage of trials: a journal in the search's folder, or a database that several drivers share."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock, Timeout

from lightning_reg.files import opened
from lightning_reg.settings import SettingError, first_in_chain

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

__all__ = ["Driver", "check_installed", "masked", "open_storage", "silenced", "stored"]

_JOURNAL = "journal.log"
_HEARTBEAT, _GRACE = 30, 150  # seconds; a driver of a database that is silent for so long is dead


def check_installed() -> None:
    """Checks that Optuna is installed.

    Raises:
        SettingError: If it isn't installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise SettingError("a search needs Optuna; install it by pip install 'lightning-reg[search]'") from error


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Suppresses Optuna's messages, and its warnings about experimental features."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            experimental = "(?s).*(``group``|``multivariate``|``constant_liar``|WilcoxonPruner|fail_stale_trials)"
            warnings.filterwarnings("ignore", experimental, optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used with")
            warnings.filterwarnings("ignore", "Argument ``heartbeat_interval`` is an experimental")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def open_storage(folder: Path, url: str | None = None) -> BaseStorage:
    """Opens the storage of a search.

    Args:
        folder: Existing folder of the search.
        url: URL of a database that Optuna supports; the journal in the folder if None.

    Raises:
        SettingError: If the database can't be reached.
    """
    if url is None:
        return _journal(folder / _JOURNAL)
    from optuna.storages import RDBStorage

    if re.match(r"sqlite(\+\w+)?://(/?$|/:memory:|.*[?&]mode=memory)", url):
        raise SettingError(
            f"storage must be a database that stays, in a file or on a server, but {url} is in memory: it can't be "
            "shared, and ends with the process"
        )
    try:
        with silenced():
            return RDBStorage(url, heartbeat_interval=_HEARTBEAT, grace_period=_GRACE)
    except Exception as error:  # from any database driver, or from SQLAlchemy
        reason = masked(_reason(error), url)
    # Outside the handler: a traceback would show the driver's arguments, including the password.
    raise SettingError(f"storage must be a database that can be reached, but {masked(url, url)} can't: {reason}")


@contextlib.contextmanager
def stored(folder: Path, url: str | None = None) -> Iterator[BaseStorage]:
    """Opens the storage of a search, and closes its connections on exit.

    Args:
        folder: Folder of the search; it must exist unless there is a database.
        url: URL of a database that Optuna supports; the journal in the folder if None.

    Raises:
        SettingError: If the database can't be reached.
    """
    storage: Any = open_storage(folder, url)
    try:
        yield storage
    finally:
        if url is not None:
            storage.remove_session()
            storage.engine.dispose()


def _reason(error: BaseException) -> str:
    absent = first_in_chain(error, (ModuleNotFoundError,))
    if isinstance(absent, ModuleNotFoundError):
        return f"it needs the package of the Python module {absent.name}, which isn't installed"
    text = " ".join(str(error.__cause__ or error).split()).partition(" (Background on this error")[0]
    return text if len(text) <= 200 else f"{text[:197]}..."


def masked(text: str, url: str | None) -> str:
    """Replaces the password of a storage in a text.

    Args:
        text: A message, a command, or the URL itself.
        url: URL of the storage; None if it is a journal.

    >>> masked("--storage postgresql://me:s3cret@host/db", "postgresql://me:s3cret@host/db")
    '--storage postgresql://me:***@host/db'
    """
    if url is None:
        return text
    text = text.replace(url, re.sub(r"(://[^:/@]*:).*@", r"\1***@", url))
    try:
        password = urlsplit(url).password
    except ValueError:  # not a valid URL, but perhaps with a password in it
        return re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", text)
    forms = {password, unquote(password), quote(unquote(password))} if password else set()
    for form in sorted(forms, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", "***", text)  # not within a word, for a password such as "b"
    return text


def _journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

    lock = _KernelLock(path.with_suffix(".lock"))
    with lock:
        _without_half_a_line(path)
    backend: BaseJournalBackend = JournalFileBackend(str(path), lock_obj=lock)  # type: ignore[arg-type]  # as it is used
    try:
        return JournalStorage(backend)
    except OSError:
        raise
    except Exception as error:  # Optuna raises anything on an entry that isn't its own
        raise _unreadable(path) from error


def _without_half_a_line(path: Path) -> None:
    """Truncates an incomplete last entry, left by a kill or a full disk: the next one would be appended to it."""
    if not path.exists():
        return
    with opened("the search's journal", path) as file:
        content = file.read()
    if content and not content.startswith(b"{"):  # an entry is JSON: this was never a journal
        raise _unreadable(path)
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def _unreadable(path: Path) -> SettingError:
    return SettingError(
        f"{path.name} of {str(path.parent)!r} can't be read as a search's journal; give another --output"
    )


class _KernelLock:
    """Optuna's lock interface on top of filelock: the kernel immediately frees the lock of a dead process."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path, mode=0o666)

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: Any) -> None:
        self.release()


class Driver:
    """A process that drives a search; while alive it holds a lock file, which the kernel frees when it dies."""

    def __init__(self, folder: Path) -> None:
        self.id = secrets.token_hex(6)
        self._folder = folder / "drivers"
        self._lock = FileLock(self._path(self.id), timeout=0, mode=0o666)

    def _path(self, driver: str) -> Path:
        return self._folder / f"{driver}.lock"

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Holds the lock."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with self._lock:
                yield
        finally:
            self._path(self.id).unlink(missing_ok=True)

    def is_dead(self, driver: str) -> bool | None:
        """Returns whether another driver is dead; None if it has no lock file in this folder."""
        path = self._path(driver)
        if driver == self.id:
            return False
        if not path.exists():  # it has ended normally, or uses another folder
            return None
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return False
        lock.release()
        path.unlink(missing_ok=True)
        return True
