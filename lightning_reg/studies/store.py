"""The folder of a study: what has been run, whatever interrupted it."""

import contextlib
import errno
import json
import os
import secrets
import shutil
from pathlib import Path

from lightning_reg.settings import SettingError
from lightning_reg.studies.claims import Claims
from lightning_reg.studies.outcome import Failure, Result
from lightning_reg.studies.runs import Measured, Run

__all__ = ["Store", "is_full_disk", "write_atomically"]

_FORMAT = 1
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # the latter isn't known everywhere
_ALMOST_NOTHING = 1 << 20  # bytes; torch reports a full disk without saying that it is one


class Store:
    """Results by the keys of runs.

    Every file is there whole or not at all, and runs belong to their content: so nothing is half written, repeated or
    mixed up, and as many processes as wanted can work on one folder.

    Args:
        folder: Of the study.
        name: Of the study.
        claims: Who does which run.
    """

    def __init__(self, folder: str | Path, name: str, claims: Claims | None = None) -> None:
        self.folder = Path(folder)
        self.name = name
        self.claims = claims or Claims()

    def open(self) -> None:
        """Makes the folder, or finds that it is this study's.

        Raises:
            SettingError: If it is another study's, or holds something else, or can't be written.
        """
        identity = self.folder / "study.json"
        shown = repr(str(self.folder))
        try:
            if identity.is_file():
                found = json.loads(identity.read_text(encoding="utf-8"))
                if found.get("study") != self.name or found.get("format") != _FORMAT:
                    raise SettingError(
                        f"output must be a folder of {self.name!r}, but {shown} is of {found.get('study')!r}"
                    )
                return
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise SettingError(f"output must be a new folder or a study's, but {shown} holds something else")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(identity, json.dumps({"study": self.name, "format": _FORMAT}))
        except (OSError, ValueError) as error:
            if isinstance(error, SettingError):
                raise
            raise SettingError(f"output must be a folder that can be written, but is {shown}: {error}") from error

    def run_folder(self, run: Run) -> Path:
        """Returns where a run's files lie.

        Args:
            run: Whose.
        """
        return self.folder / "runs" / run.key

    def has_result(self, run: Run) -> bool:
        """Whether a run has ended well.

        Args:
            run: Which.
        """
        return (self.run_folder(run) / "result.json").is_file()

    def result(self, run: Run) -> Result | None:
        """Returns what a run measured; None where it hasn't ended well.

        Args:
            run: Which.

        Raises:
            SettingError: If somebody has changed the file so that it can't be read.
        """
        path = self.run_folder(run) / "result.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise SettingError(f"{path} can't be read ({error}); remove it, and its run is done again") from error
        curves = {name: [(point[0], point[1]) for point in curve] for name, curve in found["curves"].items()}
        return Result(run.variant, run.seed, found["metrics"], curves, found["collected"], found["seconds"])

    def write_result(self, run: Run, measured: Measured, seconds: float) -> None:
        """Keeps what a run measured.

        Args:
            run: Which.
            measured: What it measured.
            seconds: How long it took.
        """
        content = {
            "variant": run.variant,  # for whoever looks in; the key decides
            "seed": run.seed,
            "metrics": dict(measured.metrics),
            "curves": {name: [list(point) for point in curve] for name, curve in measured.curves.items()},
            "collected": dict(measured.collected),
            "seconds": seconds,
        }
        write_atomically(self.run_folder(run) / "result.json", json.dumps(content))

    def write_failure(self, run: Run, message: str, details: str) -> None:
        """Keeps why a run ended.

        Args:
            run: Which.
            message: One line.
            details: With the traceback.
        """
        write_atomically(self.run_folder(run) / "failure.txt", f"{message}\n\n{details}")

    def failure(self, run: Run) -> Failure | None:
        """Returns why a run ended; None where it didn't, or ended well.

        Args:
            run: Which.
        """
        try:
            text = (self.run_folder(run) / "failure.txt").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return None if self.has_result(run) else Failure(run.variant, run.seed, text.partition("\n")[0])

    def failed_at(self, run: Run) -> int:
        """Returns what tells one failure of a run from the next; 0 where there is none.

        Args:
            run: Which.
        """
        try:
            return (self.run_folder(run) / "failure.txt").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def clear(self, run: Run) -> None:
        """Removes what an earlier attempt at a run has left, and nothing that says who does it.

        Args:
            run: Which; it has to be ours.
        """
        for path in self.run_folder(run).iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif not path.name.startswith("claim-"):
                path.unlink(missing_ok=True)

    def full(self, error: BaseException) -> SettingError | None:
        """Returns what to say where an error comes of a full disk; None where it doesn't.

        Args:
            error: Of a run, or of writing its result.
        """
        if not is_full_disk(error):
            with contextlib.suppress(OSError):
                if not isinstance(error, RuntimeError) or shutil.disk_usage(self.folder).free > _ALMOST_NOTHING:
                    return None
        return SettingError(
            f"the disk of {str(self.folder)!r} is full; what is finished is kept. Free some space, and give the same "
            "command to go on"
        )


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, is that of a full disk.

    Args:
        error: Any.

    >>> is_full_disk(OSError(errno.ENOSPC, "No space left on device")), is_full_disk(ValueError())
    (True, False)
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all, also when the machine goes off.

    Args:
        path: Of the file.
        text: Its content.
    """
    # Not by tempfile, whose files nobody else may read: a study may be that of several people.
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _settle(path.parent)


def _settle(folder: Path) -> None:
    """Lets the folder, too, know of its file; where systems allow it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
