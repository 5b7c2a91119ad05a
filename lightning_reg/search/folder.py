"""The folder of a search: which search it is of, and what it hands over."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_reg.files import read_json, write_atomically
from lightning_reg.settings import SettingError
from lightning_reg.studies.store import full_disk, is_disk_full

__all__ = ["SearchFolder"]

_FILE = "search.json"


class SearchFolder:
    """Where a search's files lie.

    Args:
        parts: Keys of what makes it the search that it is, by the name of the setting.
    """

    def __init__(self, path: Path, name: str, parts: Mapping[str, str]) -> None:
        self.path = path
        self.name = name
        self.parts = dict(parts)

    def check(self) -> None:
        """Finds whether the folder is this search's or a new one, and writes nothing.

        Raises:
            SettingError: If it is another search's, or holds something else.
        """
        shown = repr(str(self.path))
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise SettingError(f"output must be a folder, but {shown} is a file")
        if not (self.path / _FILE).exists():
            if any(not entry.name.startswith(".") for entry in self.path.iterdir()):
                raise SettingError(f"output must be a new folder or a search's, but {shown} holds something else")
            return
        found = read_json(f"output's {_FILE}", self.path / _FILE)
        identity = found.get("search") if isinstance(found, dict) else None
        if not isinstance(identity, dict) or not isinstance(identity.get("parts"), dict):
            raise SettingError(f"output must be a search's folder, but {shown} doesn't say of which")
        if identity.get("name") != self.name:
            raise SettingError(f"output must be a folder of {self.name!r}, but {shown} is of {identity.get('name')!r}")
        changed = [part for part, key in self.parts.items() if identity["parts"].get(part) != key]
        if changed:
            raise SettingError(
                f"output must be a folder of this very search, but {shown} is of one with another "
                f"{' and another '.join(changed)}; give another --output"
            )

    def make(self) -> None:
        """Makes the folder, and says in it which search's it is.

        Raises:
            SettingError: If it can't be written.
        """
        with self.reported():
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / _FILE).exists():
                self.write_json({})

    def write_json(self, content: Mapping[str, Any]) -> None:
        """Writes search.json.

        Args:
            content: Beside what says which search's folder it is.
        """
        identity = {"search": {"name": self.name, "parts": self.parts}}
        write_atomically(self.path / _FILE, json.dumps({**identity, **content}, indent=1))

    def write(self, name: str, text: str) -> Path:
        """Writes a file of what the search hands over; returns its path."""
        path = self.path / name
        write_atomically(path, text)
        return path

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Turns what the system says of the folder into a sentence.

        Raises:
            SettingError: If the disk is full, or the folder can't be written.
        """
        try:
            yield
        except OSError as error:
            if is_disk_full(error, self.path):
                raise full_disk(self.path) from error
            raise SettingError(
                f"output must be a folder that can be written, but is {str(self.path)!r}: {error}"
            ) from error
