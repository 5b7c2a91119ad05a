"""The folder of a study, which keeps finished runs across interruptions."""

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightning_reg.files import read_json, write_atomically
from lightning_reg.settings import SettingError
from lightning_reg.studies.collected import check_collected, checked_list, checked_mapping, checked_number
from lightning_reg.studies.outcome import Result
from lightning_reg.studies.runs import Measured, Run

__all__ = ["Store", "full_disk", "is_disk_full", "result_text"]

_FORMAT = 1
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # EDQUOT doesn't exist on every system
_ALMOST_NOTHING = 1 << 20  # bytes; torch's errors on a full disk don't name the reason
_RESULT = "result.json"
_FAILURE = "failure.txt"


class Store:
    """Store of results, by the keys of runs.

    Only the process that holds the lock writes to the folder. Files are written atomically, and runs are identified by
    their content, so results are never incomplete, repeated or mixed up.

    Args:
        folder: Path of the folder.
        name: Name of the study or search.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        self.folder = Path(folder)
        self.name = name

    def check(self) -> None:
        """Checks that the folder is new or belongs to this study, without writing anything.

        Raises:
            SettingError: If it belongs to another study, or holds something else.
        """
        identity = self.folder / "study.json"
        shown = repr(str(self.folder))
        with _reported(self.folder):
            if _exists(identity):
                found = read_json("output's study.json", identity)
                if not isinstance(found, dict) or "study" not in found:
                    raise SettingError(f"output must be a study's folder, but {str(identity)!r} doesn't say of which")
                if found["study"] != self.name:
                    raise SettingError(
                        f"output must be a folder of {self.name!r}, but {shown} is of {found['study']!r}"
                    )
                if found.get("format") != _FORMAT:
                    raise SettingError(
                        f"output must be a folder in format {_FORMAT}, that of this version, but {shown} is in "
                        f"{found.get('format')!r}"
                    )
            elif self.folder.exists() and (not self.folder.is_dir() or any(map(_is_foreign, self.folder.iterdir()))):
                raise SettingError(f"output must be a new folder or a study's, but {shown} holds something else")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Creates the folder if needed, and locks it for this process; the kernel frees the lock of a dead process.

        Raises:
            SettingError: If another process holds the lock, or the folder can't be written.
        """
        # Readable and writable by everyone with access to the folder, since several people may share a study.
        lock = FileLock(self.folder / ".study.lock", timeout=0, mode=0o666)
        with _reported(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout as error:
                raise SettingError(
                    f"output must be a folder that no other process is at, but one runs this study in "
                    f"{str(self.folder)!r}; let it finish (--jobs does several runs at once), or give another --output"
                ) from error
        try:
            self.check()
            with _reported(self.folder):
                if not _exists(self.folder / "study.json"):
                    write_atomically(self.folder / "study.json", json.dumps({"study": self.name, "format": _FORMAT}))
            yield
        finally:
            lock.release()

    def run_folder(self, run: Run) -> Path:
        """Returns the folder of a run."""
        return self.folder / "runs" / run.key

    def has_result(self, run: Run) -> bool:
        """Whether a run has finished without an error."""
        return _exists(self.run_folder(run) / _RESULT)

    def result(self, run: Run) -> Result | None:
        """Returns the result of a run; None if it has none.

        Raises:
            SettingError: If the result file is invalid.
        """
        path = self.run_folder(run) / _RESULT
        if not _exists(path):
            return None
        try:
            return _result(run, read_json("result", path))
        except SettingError as error:
            raise SettingError(f"{error}; remove {str(path)!r}, and its run is done again") from error

    def write_result(self, run: Run, text: str) -> None:
        """Writes the result of a run.

        Args:
            text: Text of the file, as returned by :func:`result_text`.
        """
        write_atomically(self.run_folder(run) / _RESULT, text)

    def write_failure(self, run: Run, message: str, details: str) -> None:
        """Writes the reason why a run failed."""
        write_atomically(self.run_folder(run) / _FAILURE, f"{message}\n\n{details}")

    def prepare(self, run: Run) -> None:
        """Creates an empty folder for a run, removing the files of an earlier attempt.

        Args:
            run: A run without a result.

        Raises:
            SettingError: If the folder can't be made.
        """
        self.discard(run)
        with _reported(self.folder):
            self.run_folder(run).mkdir(parents=True, exist_ok=True)

    def discard(self, run: Run) -> None:
        """Removes the folder of a run.

        Args:
            run: A run that no process is performing.
        """
        shutil.rmtree(self.run_folder(run), ignore_errors=True)


def result_text(run: Run, measured: Measured, seconds: float) -> str:
    """Returns the text of a run's result file.

    Args:
        measured: Measurements of the run.
        seconds: Duration of the run in seconds.

    Raises:
        TypeError: If the collected results aren't plain values.
        SettingError: If they lack what reports read of them.
    """
    content = {
        "variant": run.variant,  # for human readers; the key identifies the run
        "seed": run.seed,
        "metrics": dict(measured.metrics),
        "curves": {name: [list(point) for point in curve] for name, curve in measured.curves.items()},
        "collected": dict(measured.collected),
        "seconds": seconds,
    }
    text = json.dumps(content)
    check_collected(json.loads(text)["collected"])  # as it is read again: tuples have become lists
    return text


def is_disk_full(error: BaseException | None, folder: Path) -> bool:
    """Whether an exception, or one of its causes, is due to a full disk.

    Args:
        error: Exception of a run, or of writing its result.
        folder: Folder that was written to.

    >>> is_disk_full(OSError(errno.ENOSPC, "No space left on device"), Path()), is_disk_full(ValueError(), Path())
    (True, False)
    """
    if isinstance(error, RuntimeError):
        with contextlib.suppress(OSError):
            if shutil.disk_usage(folder).free <= _ALMOST_NOTHING:
                return True
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def full_disk(folder: Path) -> SettingError:
    """Returns the error to raise for a full disk."""
    return SettingError(
        f"the disk of {str(folder)!r} is full; what is finished is kept. Free some space, and give the same command to "
        "go on"
    )


@contextlib.contextmanager
def _reported(folder: Path) -> Iterator[None]:
    """Turns an OSError about a folder into a one-sentence error message."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error, folder):
            raise full_disk(folder) from error
        raise SettingError(f"output must be a folder that can be written, but is {str(folder)!r}: {error}") from error


def _exists(path: Path) -> bool:
    """Whether a path exists, even as a broken link: its content is checked when it is read."""
    try:
        return stat.S_IFMT(os.lstat(path).st_mode) != 0
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_foreign(path: Path) -> bool:
    return not path.name.startswith(".study.")  # the lock, or a temporary file that a killed process left of study.json


def _result(run: Run, found: Any) -> Result:
    if not isinstance(found, dict):
        raise SettingError(f"result must have metrics by name, but is {'nothing' if found is None else found!r:.60}")
    metrics = {
        name: checked_number(f"metrics.{name}", value)
        for name, value in checked_mapping("metrics", found.get("metrics")).items()
    }
    if not metrics:
        raise SettingError("result must have metrics by name, but has none")
    curves = {
        name: [_point(f"curves.{name}", point) for point in checked_list(f"curves.{name}", curve)]
        for name, curve in checked_mapping("curves", found.get("curves")).items()
    }
    collected = checked_mapping("collected", found.get("collected"))
    check_collected(collected)
    seconds = checked_number("seconds", found.get("seconds"), finite=True)
    return Result(run.variant, run.seed, metrics, curves, collected, seconds)


def _point(name: str, value: Any) -> tuple[float, float]:
    if len(checked_list(name, value)) != 2:
        raise SettingError(f"result must have pairs of epoch and value in {name}, but has {value!r:.60}")
    return checked_number(name, value[0], finite=True), checked_number(name, value[1])
