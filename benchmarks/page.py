"""Generates docs/benchmarks.md from the results of benchmarks.

``python -m benchmarks.page`` fills docs/benchmarks/template.md: ``{{cpu: mixing}}`` is replaced by the tables of a
benchmark in docs/benchmarks/cpu.json, ``{{cpu: machine}}`` by the machine of that run, ``{{cpu: targets}}`` by the
comparison with the targets.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.tables import Table
from benchmarks.targets import judged

__all__ = ["PAGE", "rendered"]

_DOCS = Path(__file__).parents[1] / "docs"
PAGE = _DOCS / "benchmarks.md"
_PLACE = re.compile(r"\{\{(\w+): (\w+)\}\}")


def rendered(folder: Path = _DOCS / "benchmarks") -> str:
    """Returns the text of the page.

    Args:
        folder: Folder of the template and the results.

    Raises:
        KeyError: If the template refers to a benchmark without results.
    """

    @cache
    def run(name: str) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return read

    def fill(place: re.Match[str]) -> str:
        measured, what = run(place[1]), place[2]
        if what == "machine":
            return str(measured["machine"])
        if what == "targets":
            return judged(measured["benchmarks"]).markdown().strip()
        return "\n".join(Table(**table).markdown() for table in measured["benchmarks"][what]).strip()

    return _PLACE.sub(fill, (folder / "template.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
