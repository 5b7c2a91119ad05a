"""Tables of results, which can be printed, saved as JSON and converted to Markdown."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from lightning_reg.studies.machine import processor
from lightning_reg.text import table

__all__ = ["Options", "Table", "machine"]

Cell = str | float | None


@dataclass(frozen=True)
class Options:
    """Options of benchmarks.

    Attributes:
        device: Device of torch, such as ``cpu`` or ``cuda``.
        quick: Whether to run few rounds, for rough results.
        smallest: Whether to run only a smoke test, without meaningful results.
        compiled: Whether to compile networks that are trained.
        only: Text that the names of techniques must contain.
        workloads: Names of the networks in which techniques are timed.
        data: Folder of images, with one folder per class in ``train``; random images if None.
    """

    device: str = "cpu"
    quick: bool = False
    smallest: bool = False
    compiled: bool = False
    only: str = ""
    workloads: Sequence[str] = ("mlp", "cnn")
    data: str | None = None

    def rounds(self, full: int, quick: int) -> int:
        """Returns the number of repetitions: one in a smoke test.

        Args:
            full: Number in a full run.
            quick: Number in a quick run.
        """
        return 1 if self.smallest else quick if self.quick else full


@dataclass
class Table:
    """Rows of measurements.

    Attributes:
        title: What was measured.
        columns: Names of the columns; the first column has the names of the rows.
        rows: Rows with one cell per column: text, a number, or None if empty.
        note: Explanation below the title, if any.
    """

    title: str
    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)
    note: str = ""

    def add(self, *cells: Cell) -> None:
        """Adds a row.

        Args:
            cells: Cells of the row, one per column.
        """
        if len(cells) != len(self.columns):
            raise ValueError(f"a row must have {len(self.columns)} cells, but has {len(cells)}")
        self.rows.append(list(cells))

    def text(self) -> str:
        """Returns the table as aligned text."""
        rows = [[shown(cell) for cell in row] for row in self.rows]
        lines = table([self.columns, *rows], right=range(1, len(self.columns)), indent="  ")
        return "\n".join([self.title, *([self.note] if self.note else []), *lines])

    def markdown(self) -> str:
        """Returns the table as Markdown."""
        cells = [[shown(row[place]) for row in self.rows] for place in range(1, len(self.columns))]
        rules = ["---", *("---" if any(map(_is_word, column)) else "---:" for column in cells)]
        header = [f"| {' | '.join(self.columns)} |", f"|{'|'.join(rules)}|"]
        # Names of rows that belong to the one above are indented.
        rows = [
            [("&ensp;" if str(row[0]).startswith(" ") else "") + shown(row[0]).strip(), *map(shown, row[1:])]
            for row in self.rows
        ]
        body = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
        return "\n".join([f"### {self.title}", "", *([self.note, ""] if self.note else []), *header, *body, ""])

    def data(self) -> dict[str, Any]:
        """Returns the table as plain values for JSON."""
        return asdict(self)


def shown(cell: Cell) -> str:
    """Formats a cell: with two decimals from 0.1 to 100, otherwise three digits or an integer.

    >>> shown(1.234), shown(123.4), shown(0.00123), shown(None)
    ('1.23', '123', '0.00123', '')
    """
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.2f}" if abs(cell) >= 0.1 else f"{cell:.3g}"


def machine(device: str) -> str:
    """Describes the machine and the versions of the software.

    Args:
        device: Device of torch.
    """
    import lightning
    import torchvision

    hardware = f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if torch.device(device).type == "cuda":
        hardware = f"{torch.cuda.get_device_name(device)}; {hardware}"
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Lightning {lightning.__version__}"
    return f"{hardware}; Python {platform.python_version()}, {versions}"


def _is_word(text: str) -> bool:
    """Whether a cell is text, rather than a number with its unit or empty."""
    return any(map(str.isalpha, text)) and not any(map(str.isdigit, text))
