"""Reading untrusted files as data within limits, and writing files atomically."""

import contextlib
import json
import os
import pickle
import secrets
import stat
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from lightning_reg.plain_yaml import check_yaml, parsed_yaml
from lightning_reg.settings import SettingError

__all__ = [
    "CutOffError",
    "UntrustedError",
    "check_weights",
    "check_yaml",
    "opened",
    "read_checkpoint",
    "read_json",
    "read_text",
    "read_yaml",
    "write_atomically",
]

MAX_TEXT = 2**20
"""Largest size of a configuration in bytes, a hundred times that of a hand-written one."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_PICKLE = b"\x80"


class UntrustedError(SettingError):
    """A checkpoint holds more than data; none of it has been executed."""


class CutOffError(SettingError):
    """A checkpoint is truncated, as when the process that wrote it was killed."""


@contextlib.contextmanager
def opened(name: str, path: str | Path, *, limit: int | None = None) -> Iterator[BinaryIO]:
    """Opens a regular file for reading bytes.

    Reading a named pipe or a device may wait forever, never end, or change something.

    Args:
        name: Name of the setting or the kind of file, for error messages.
        limit: Largest allowed size in bytes.

    Raises:
        SettingError: If the file doesn't exist, isn't a regular one, can't be read, or is too large.

    >>> with opened("config", "/dev/zero") as file:
    ...     file.read()
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: config must be a regular file, but '/dev/zero' is a device
    """
    try:
        _check_regular(name, path, os.stat(path))
        # Without blocking, in case a pipe has replaced the file meanwhile.
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    except FileNotFoundError as error:
        raise SettingError(f"{name} must be a file that exists, but is {str(path)!r}") from error
    except (OSError, ValueError) as error:  # a ValueError where the path has a null byte
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
    """Returns the text of a UTF-8 file.

    Args:
        name: Name of the setting or the kind of file, for error messages.
        limit: Largest allowed size in bytes.

    Raises:
        SettingError: As `opened`, and if it isn't UTF-8 text.
    """
    with opened(name, path, limit=limit) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise SettingError(f"{name} {str(path)!r} can't be read: {error.strerror}") from error
    if len(content) > limit:  # it has grown since it was opened, or reports no size, as files below /proc
        raise SettingError(f"{name} must have at most {limit:,} bytes, but {str(path)!r} has more")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + len(content) - len(error.object)  # the decoder counts from after a byte order mark
        found = f"its byte {start} is {content[start]:#04x}"
        raise SettingError(f"{name} must be text in UTF-8, but {str(path)!r} isn't: {found}") from error


def read_json(name: str, path: str | Path, *, limit: int = 2**28) -> Any:
    """Returns the parsed content of a JSON file.

    Args:
        name: Name of the setting or the kind of file, for error messages.
        limit: Largest allowed size in bytes.

    Raises:
        SettingError: As `read_text`, and if it isn't JSON.
    """
    try:
        text = read_text(name, path, limit=limit)
        found = json.loads(text)
        if "\\ud" in text or "\\uD" in text:  # half a character, which nothing can print or write
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except (ValueError, RecursionError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"{name} must be JSON, but {str(path)!r} isn't: {error}") from error


def read_yaml(name: str, path: str | Path) -> Any:
    """Returns the parsed content of a YAML file.

    Args:
        name: Name of the setting or the kind of file, for error messages.

    Raises:
        SettingError: As `read_text` and `check_yaml`, with the file's name.
    """
    return parsed_yaml(f"{name} {str(path)!r}", read_text(name, path))


def read_checkpoint(name: str, path: str | Path, *, weights_only: bool = True) -> Any:
    """Returns the content of a ``torch.save`` file, with tensors on the CPU, memory-mapped where the format allows.

    Args:
        name: Name of the setting or the kind of file, for error messages.
        weights_only: Whether to refuse a file that holds more than data; loading such a file can run arbitrary code.

    Raises:
        UntrustedError: If it holds more than data, which the message lists; none of it has been executed.
        CutOffError: If it is truncated; the message names the newest readable checkpoint beside it.
        SettingError: As `opened`, and if it isn't a ``torch.save`` file.
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what it would do with a file that isn't one
            # Legacy torch.save files aren't zip archives and can't be memory-mapped.
            return torch.load(path, map_location="cpu", weights_only=weights_only, mmap=is_archive)
    except SettingError:
        raise
    except Exception as error:  # torch's reader can raise anything on a damaged file
        if not weights_only and (is_archive or start[:1] == _PICKLE):
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise SettingError(f"{shown} can't be loaded: {reason}") from error
        if isinstance(error, pickle.UnpicklingError) and (is_archive or start[:1] == _PICKLE):
            raise _untrusted(f"{shown} is not a Lightning checkpoint, is damaged, or holds more than data") from error
        raise SettingError(f"{shown} is not a Lightning checkpoint") from error


def check_weights(
    shown: str, weights: Mapping[str, Any], wanted: Mapping[str, Tensor], *, allows_nan: bool = False
) -> None:
    """Raises if saved weights can't be taken for a model's.

    Args:
        shown: The file and its name, for error messages.
        weights: The saved ``state_dict``. Entries that are no tensors, or that only one side has, aren't looked at.
        wanted: The model's weights.
        allows_nan: Whether weights may be NaN.

    Raises:
        SettingError: If a tensor is sparse, has no values, has NaNs that aren't allowed, or has another kind of
            numbers, such as integers.

    >>> check_weights("'a.ckpt'", {"w": torch.tensor([1])}, {"w": torch.tensor([0.5])})
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: 'a.ckpt' holds weights that the model can't take: w is torch.int64, not ...
    """
    for name, own in wanted.items():
        saved = weights.get(name)
        if not isinstance(saved, Tensor):
            continue
        fault = None
        if saved.is_meta:
            fault = "has a shape, but no values"
        elif saved.layout != own.layout:
            fault = f"is {saved.layout}, not {own.layout}"
        elif _kind_of_number(saved.dtype) != _kind_of_number(own.dtype):
            fault = f"is {saved.dtype}, not {own.dtype}"
        elif not allows_nan and saved.isnan().any():
            fault = "has NaNs"
        if fault:
            raise SettingError(f"{shown} holds weights that the model can't take: {name} {fault}")


def _kind_of_number(dtype: torch.dtype) -> tuple[bool, bool]:
    return dtype.is_floating_point, dtype.is_complex


def _untrusted(found: str) -> UntrustedError:
    return UntrustedError(
        f"{found}; loading that can run any program, so do it only where you trust whoever made the file, "
        "with --weights_only false (in Python weights_only=False)"
    )


def _has_end(file: BinaryIO) -> bool:
    """Whether a zip archive has its central directory, which is written last."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # damaged, but present
        return True


def _check_archive(shown: str, file: BinaryIO, size: int) -> None:
    """Raises if the records claim more bytes than the archive has, as in a zip bomb: torch doesn't compress."""
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
    """Writes a file completely or not at all, even if the machine loses power.

    Args:
        path: File to write, replaced if it exists. With concurrent writers, the last one wins.
        text: The content, written as UTF-8 with line endings as they are.
    """
    # Not with tempfile, whose files only their owner may read: several people may share a study.
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
    # Sync the directory entry, too; not every system can open a directory.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
