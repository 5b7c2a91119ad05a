"""Writing files so that they are there whole or not at all."""

import contextlib
import os
import secrets
from pathlib import Path

__all__ = ["write_atomically"]


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
