"""Files of strangers, opened only if they are regular and read as data that runs nothing; whole files of our own."""

import contextlib
import json
import os
import pickle
import re
import secrets
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml
from torch.serialization import get_unsafe_globals_in_checkpoint

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
_MAX_DEPTH = 64
_MAX_NODES = 100_000
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_PICKLE = b"\x80"
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map")}


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the second where libyaml is missing


class _Loader(_SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Reads 1e-4 as a number, which YAML 1.1 wants a point in; command lines don't."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class UntrustedError(SettingError):
    """A checkpoint holds more than data; nothing of it has been run."""


class CutOffError(SettingError):
    """The end of a checkpoint is missing, as after a kill in the middle of writing it."""


@contextmanager
def opened(name: str, path: str | Path, *, limit: int | None = None) -> Iterator[BinaryIO]:
    """Opens a regular file for reading bytes.

    Reading a named pipe or a device may wait forever, never end, or change something.

    Args:
        name: The setting or the kind of file, as the user knows it.
        path: Of the file.
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
        path: Of the file.
        limit: Size in bytes that a file of this kind never has.

    Raises:
        SettingError: As `opened`, and if it isn't text in UTF-8.
    """
    with opened(name, path, limit=limit) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise SettingError(f"{name} {str(path)!r} can't be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"its byte {error.start} is {content[error.start]:#04x}"
        raise SettingError(f"{name} must be text in UTF-8, but {str(path)!r} isn't: {found}") from error


def read_json(name: str, path: str | Path, *, limit: int = 2**28) -> Any:
    """Returns what a JSON file holds.

    Args:
        name: The setting or the kind of file, as the user knows it.
        path: Of the file.
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
        path: Of the file.

    Raises:
        SettingError: As `read_text` and `check_yaml`, with the file's name.
    """
    shown = f"{name} {str(path)!r}"
    text = read_text(name, path)
    check_yaml(shown, text)
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError) as error:  # ValueError: a date such as 2001-99-99
        raise SettingError(f"{shown} isn't plain YAML: {_one_line(error)}") from error


@dataclass
class _Open:
    """A mapping or a list whose end hasn't been read yet."""

    anchor: str | None
    is_mapping: bool
    nodes: int = 1
    children: int = 0
    keys: set[str] = field(default_factory=set)


def check_yaml(name: str, text: str) -> None:
    """Raises unless a text is one YAML document of plain values that any program can walk through.

    It is checked while it is read, event by event, so that nothing large is made of it: an alias counts for all that it
    stands for.

    Args:
        name: What the text is, for the message.
        text: The YAML.

    Raises:
        SettingError: If it isn't YAML or has tags (``!!python/...``), with a ``YAMLError`` as the cause; or if it has a
            key twice, a list or a mapping as a key, anchors that contain themselves, several documents, is too deep, or
            comes to too much.

    >>> check_yaml("config", "trainer: &t {logger: *t}")
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: config must hold plain values, but line 1 has an alias *t of what it lies in
    """
    try:
        _check_events(name, text)
    except yaml.YAMLError as error:
        raise SettingError(f"{name} isn't plain YAML: {_one_line(error)}") from error


def _check_events(name: str, text: str) -> None:
    open_: list[_Open] = [_Open(None, is_mapping=False)]
    sizes: dict[str, int] = {}  # of what each anchor stands for, with all its aliases written out
    documents = 0
    for event in yaml.parse(text, Loader=_SafeLoader):
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise SettingError(f"{name} must be one YAML document, but {line} begins another")
        elif isinstance(event, yaml.CollectionEndEvent):
            done = open_.pop()
            if done.anchor is not None:
                sizes[done.anchor] = done.nodes
            open_[-1].nodes += done.nodes
        elif isinstance(event, yaml.NodeEvent):
            _check_node(name, line, event, open_[-1])
            if isinstance(event, yaml.CollectionStartEvent):
                sizes.pop(event.anchor, None)
                open_.append(_Open(event.anchor, is_mapping=isinstance(event, yaml.MappingStartEvent)))
            else:
                size = _size_of_alias(name, line, event, sizes, open_) if isinstance(event, yaml.AliasEvent) else 1
                open_[-1].nodes += size
                if event.anchor is not None:
                    sizes[event.anchor] = size
        if len(open_) > _MAX_DEPTH:
            raise SettingError(f"{name} must be at most {_MAX_DEPTH} levels deep, but is deeper at {line}")
        if sum(each.nodes for each in open_) > _MAX_NODES:
            raise SettingError(f"{name} must come to at most {_MAX_NODES:,} values, but comes to more at {line}")


def _size_of_alias(
    name: str, line: str, event: yaml.AliasEvent, sizes: Mapping[str, int], open_: Sequence[_Open]
) -> int:
    if event.anchor in sizes:
        return sizes[event.anchor]
    if any(each.anchor == event.anchor for each in open_):
        raise SettingError(f"{name} must hold plain values, but {line} has an alias *{event.anchor} of what it lies in")
    raise yaml.MarkedYAMLError(problem=f"*{event.anchor} stands for nothing before it", problem_mark=event.start_mark)


def _check_node(name: str, line: str, event: yaml.NodeEvent, parent: _Open) -> None:
    tag = getattr(event, "tag", None)
    if tag not in (None, "!", *_PLAIN_TAGS):
        shown = str(tag).replace("tag:yaml.org,2002:", "!!")
        raise yaml.MarkedYAMLError(problem=f"the tag {shown} makes no plain value", problem_mark=event.start_mark)
    if parent.is_mapping and parent.children % 2 == 0:
        if isinstance(event, yaml.CollectionStartEvent):
            raise SettingError(f"{name} must have names as keys, but {line} has a list or a mapping in a key's place")
        key = getattr(event, "value", None)
        if key in parent.keys:
            raise SettingError(f"{name} must have every key once, but {line} has {key!r} again")
        if key is not None and key != "<<":
            parent.keys.add(key)
    parent.children += 1


def _one_line(error: Exception) -> str:
    """What is wrong and where, without the picture of the line that YAML draws."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None:
        return " ".join(str(error).split())
    return problem if mark is None else f"{problem} in line {mark.line + 1}, column {mark.column + 1}"


def read_checkpoint(name: str, path: str | Path, *, weights_only: bool = True) -> Any:
    """Returns what a file of ``torch.save`` holds, with tensors on the CPU that are read from it when they are used.

    Args:
        name: The setting or the kind of file, as the user knows it.
        path: Of the file.
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
        if size == 0 or (is_archive and not zipfile.is_zipfile(file)):
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


def _check_archive(shown: str, file: BinaryIO, size: int) -> None:
    """Raises if a small archive says that it becomes a large one: torch compresses nothing."""
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
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
