"""The output folder of a search."""

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
    """The output folder of a search, which records the search that it belongs to.

    Args:
        path: Path of the folder.
        name: Name of the search.
        parts: Hashes of the settings that identify the search, by name.
    """

    def __init__(self, path: Path, name: str, parts: Mapping[str, str]) -> None:
        self.path = path
        self.name = name
        self.parts = dict(parts)

    def check(self) -> None:
        """Checks that the folder is new or belongs to this search, without writing anything.

        Raises:
            SettingError: If it belongs to another search, or holds something else.
        """
        with self.reported():
            self._check()

    def _check(self) -> None:
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
        """Creates the folder, and records the search in it.

        Raises:
            SettingError: If the folder can't be written.
        """
        with self.reported():
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / _FILE).exists():
                self.write_json({})

    def write_json(self, content: Mapping[str, Any]) -> None:
        """Writes ``search.json``.

        Args:
            content: Content in addition to the identity of the search.
        """
        identity = {"search": {"name": self.name, "parts": self.parts}}
        write_atomically(self.path / _FILE, json.dumps({**identity, **content}, indent=1))

    def write(self, name: str, text: str) -> Path:
        """Writes one of the search's output files and returns its path."""
        path = self.path / name
        write_atomically(path, text)
        return path

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Turns an OSError into a one-sentence error message.

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
