"""Reading untrusted files as data within limits, and writing files whole or not at all."""

import contextlib
import json
import os
import pickle
import secrets
import stat
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from lightning_reg.plain_yaml import check_yaml, parsed_yaml
from lightning_reg.settings import SettingError

__all__ = [
    "CutOffError",
    "UntrustedError",
    "check_yaml",
    "opened",
    "read_checkpoint",
    "read_json",
    "read_text",
    "read_yaml",
    "write_atomically",
]

MAX_TEXT = 2**20
"""Bytes of a configuration; what people write by hand has a hundredth of it."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_PICKLE = b"\x80"


class UntrustedError(SettingError):
    """A checkpoint holds more than data; nothing of it has been run."""


class CutOffError(SettingError):
    """The end of a checkpoint is missing, as after a kill in the middle of writing it."""


@contextlib.contextmanager
def opened(name: str, path: str | Path, *, limit: int | None = None) -> Iterator[BinaryIO]:
    """Opens a regular file for reading bytes.

    Reading a named pipe or a device may wait forever, never end, or change something.

    Args:
        name: The setting or the kind of file, as the user knows it.
        limit: Size in bytes that a file of this kind never has.

    Raises:
        SettingError: If there is no such file, it isn't a regular one, can't be read, or is too large.

    >>> with opened("config", "/dev/zero") as file:
    ...     file.read()
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: config must be a regular file, but '/dev/zero' is a device
    """
    try:
        _check_regular(name, path, os.stat(path))
        # Without waiting, should a pipe have taken the file's place meanwhile.
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    except FileNotFoundError as error:
        raise SettingError(f"{name} must be a file that exists, but is {str(path)!r}") from error
    except (OSError, ValueError) as error:  # a ValueError where the path has a zero byte
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"{name} {str(path)!r} can't be read: {getattr(error, 'strerror', error)}") from error
    with file:
        found = os.fstat(file.fileno())
        _check_regular(name, path, found)
        if limit is not None and found.st_size > limit:
            raise SettingError(f"{name} must have at most {limit:,} bytes, but {str(path)!r} has {found.st_size:,}")
        yield file


def _check_regular(name: str, path: str | Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise SettingError(f"{name} must be a regular file, but {str(path)!r} is {kind}")


def read_text(name: str, path: str | Path, *, limit: int = MAX_TEXT) -> str:
    """Returns the text of a file in UTF-8.

    Args:
        name: The setting or the kind of file, as the user knows it.
        limit: Size in bytes that a file of this kind never has.

    Raises:
        SettingError: As `opened`, and if it isn't text in UTF-8.
    """
    with opened(name, path, limit=limit) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise SettingError(f"{name} {str(path)!r} can't be read: {error.strerror}") from error
    if len(content) > limit:  # it has grown since it was opened, or never says its size, as files below /proc
        raise SettingError(f"{name} must have at most {limit:,} bytes, but {str(path)!r} has more")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + len(content) - len(error.object)  # counted behind a byte order mark
        found = f"its byte {start} is {content[start]:#04x}"
        raise SettingError(f"{name} must be text in UTF-8, but {str(path)!r} isn't: {found}") from error


def read_json(name: str, path: str | Path, *, limit: int = 2**28) -> Any:
    """Returns what a JSON file holds.

    Args:
        name: The setting or the kind of file, as the user knows it.
        limit: Size in bytes that a file of this kind never has.

    Raises:
        SettingError: As `read_text`, and if it isn't JSON.
    """
    try:
        return json.loads(read_text(name, path, limit=limit))
    except (ValueError, RecursionError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"{name} must be JSON, but {str(path)!r} isn't: {error}") from error


def read_yaml(name: str, path: str | Path) -> Any:
    """Returns what a YAML file holds.

    Args:
        name: The setting or the kind of file, as the user knows it.

    Raises:
        SettingError: As `read_text` and `check_yaml`, with the file's name.
    """
    return parsed_yaml(f"{name} {str(path)!r}", read_text(name, path))


def read_checkpoint(name: str, path: str | Path, *, weights_only: bool = True) -> Any:
    """Returns what a file of ``torch.save`` holds, with tensors on the CPU that are read from it when they are used.

    Args:
        name: The setting or the kind of file, as the user knows it.
        weights_only: Whether a file that holds more than data is refused; otherwise it can run any program.

    Raises:
        UntrustedError: If it holds more than data, with what it holds; nothing has been run then.
        CutOffError: If its end is missing, with the newest checkpoint beside it that can be read.
        SettingError: As `opened`, and if it isn't a file of ``torch.save``.
    """
    try:
        return _loaded(name, path, weights_only=weights_only)
    except CutOffError as error:
        other = _newest_readable_beside(Path(path), weights_only=weights_only)
        hint = f"the newest beside it that can be read is {str(other)!r}" if other else "none beside it can be read"
        raise CutOffError(f"{error}; {hint}") from error


def _loaded(name: str, path: str | Path, *, weights_only: bool) -> Any:
    shown = f"{name} {str(path)!r}"
    with opened(name, path) as file:
        start = file.read(4)
        is_archive = start == b"PK\3\4"
        size = os.fstat(file.fileno()).st_size
        if size == 0 or (is_archive and not _has_end(file)):
            raise CutOffError(f"{shown} is cut off, as by a kill while it was written")
        if is_archive:
            _check_archive(shown, file, size)
    try:
        if weights_only and is_archive and (more := sorted(get_unsafe_globals_in_checkpoint(path))):
            raise _untrusted(f"{shown} holds more than data: {', '.join(more[:5])}{' ...' if len(more) > 5 else ''}")
        # Older files of torch.save are no archives, and can't be mapped into memory.
        return torch.load(path, map_location="cpu", weights_only=weights_only, mmap=is_archive)
    except SettingError:
        raise
    except Exception as error:  # of a damaged file torch's reader can raise anything
        if not weights_only and (is_archive or start[:1] == _PICKLE):
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise SettingError(f"{shown} can't be loaded: {reason}") from error
        if isinstance(error, pickle.UnpicklingError) and (is_archive or start[:1] == _PICKLE):
            raise _untrusted(f"{shown} is damaged, or holds more than data") from error
        raise SettingError(f"{shown} is not a Lightning checkpoint") from error


def _untrusted(found: str) -> UntrustedError:
    return UntrustedError(
        f"{found}; loading that can run any program, so do it only where you trust whoever made the file, "
        "with --weights_only false (in Python weights_only=False)"
    )


def _has_end(file: BinaryIO) -> bool:
    """Whether an archive has its table of contents, which is written last."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # damaged, but there
        return True


def _check_archive(shown: str, file: BinaryIO, size: int) -> None:
    """Raises if a small archive says that it becomes a large one: torch compresses nothing."""
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OSError) as error:
        raise SettingError(f"{shown} is not a Lightning checkpoint") from error
    if sum(record.file_size for record in records) > size:
        raise SettingError(f"{shown} is not a Lightning checkpoint: its records claim more bytes than it has")


def _newest_readable_beside(path: Path, *, weights_only: bool) -> Path | None:
    others = [other for other in path.parent.glob("*.ckpt") if other.is_file() and other.name != path.name]
    for other in sorted(others, key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            _loaded("checkpoint", other, weights_only=weights_only)
        except SettingError:
            continue
        return other
    return None


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all, also when the machine goes off.

    Args:
        path: Replaced if it exists. Processes that write it at the same time don't disturb one another: the last wins.
        text: The content, written as UTF-8 with line endings as they are.
    """
    # Not by tempfile, whose files nobody else may read: a study may be that of several people.
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with temporary.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The folder's entry, too; not every system lets a folder be opened.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
