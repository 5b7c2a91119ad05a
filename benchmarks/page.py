"""Makes docs/benchmarks.md of what full runs have measured.

``python -m benchmarks --json docs/benchmarks/cpu.json`` measures, ``python -m benchmarks.page`` puts all files of that
folder on one page. What is said about a benchmark there is its module's docstring.
"""

import ast
import json
from pathlib import Path

from benchmarks.__main__ import BENCHMARKS
from benchmarks.tables import Table

__all__ = ["page"]

DOCS = Path(__file__).parent.parent / "docs"


def page(runs: dict[str, dict[str, object]]) -> str:
    """Returns the page as Markdown.

    Args:
        runs: What each JSON file holds, by a short name of its machine.
    """
    lines = [
        "# Measurements",
        "",
        "Made by `python -m benchmarks.page` of what `python -m benchmarks --json` measured:",
        "",
    ]
    lines += [f"- **{name}**: {run['machine']}" for name, run in runs.items()]
    lines += ["", "Machines are shared, and timings vary by some percent from run to run.", ""]
    for name, what in BENCHMARKS.items():
        measured = [(machine, table) for machine, run in runs.items() for table in _tables(run, name)]
        if measured:
            lines += [f"## {what[0].upper()}{what[1:]}", "", _about(name), ""]
        for machine, table in measured:
            table.title = f"{table.title} ({machine})" if len(runs) > 1 else table.title
            lines.append(table.markdown())
    return "\n".join(lines)


def _tables(run: dict[str, object], name: str) -> list[Table]:
    benchmarks = run["benchmarks"]
    return [Table(**each) for each in benchmarks.get(name, [])] if isinstance(benchmarks, dict) else []


def _about(name: str) -> str:
    """What a module's docstring says, without importing what it needs."""
    source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    return docstring.replace("``", "`")


def runs_in(folder: Path) -> dict[str, dict[str, object]]:
    """Reads all runs of a folder.

    Args:
        folder: With a JSON file a machine.
    """
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


if __name__ == "__main__":
    (DOCS / "benchmarks.md").write_text(page(runs_in(DOCS / "benchmarks")), encoding="utf-8")
