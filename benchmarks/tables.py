"""What a benchmark returns: tables, which are printed, written as JSON and made into Markdown."""

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
    """How benchmarks are run.

    Attributes:
        device: Device of torch, such as cpu or cuda.
        quick: Whether few rounds are enough, for a look.
        smallest: Whether only that it runs counts, and no number.
        compiled: Whether networks are compiled, where a benchmark trains one.
        only: Techniques whose name contains this.
        workloads: Names of what is trained where techniques are timed in a training step.
        data: Folder of images, a folder a class below ``train``; random numbers stand in where None.
    """

    device: str = "cpu"
    quick: bool = False
    smallest: bool = False
    compiled: bool = False
    only: str = ""
    workloads: Sequence[str] = ("mlp", "cnn")
    data: str | None = None

    def rounds(self, full: int, quick: int) -> int:
        """Returns how often something is repeated.

        Args:
            full: In a full run.
            quick: In a quick one.
        """
        return 1 if self.smallest else quick if self.quick else full


@dataclass
class Table:
    """Rows of measurements.

    Attributes:
        title: What was measured.
        columns: Names of the columns; the first is that of the rows.
        rows: A cell a column: text, a number, or None where there is none.
        note: Explanation below the title, if any.
    """

    title: str
    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)
    note: str = ""

    def add(self, *cells: Cell) -> None:
        """Adds a row.

        Args:
            cells: As many as there are columns.
        """
        if len(cells) != len(self.columns):
            raise ValueError(f"a row must have {len(self.columns)} cells, but has {len(cells)}")
        self.rows.append(list(cells))

    def text(self) -> str:
        """Returns it for a terminal."""
        rows = [[shown(cell) for cell in row] for row in self.rows]
        lines = table([self.columns, *rows], right=range(1, len(self.columns)), indent="  ")
        return "\n".join([self.title, *([self.note] if self.note else []), *lines])

    def markdown(self) -> str:
        """Returns it for a page."""
        cells = [[shown(row[place]) for row in self.rows] for place in range(1, len(self.columns))]
        rules = ["---", *("---" if any(map(_is_word, column)) else "---:" for column in cells)]
        header = [f"| {' | '.join(self.columns)} |", f"|{'|'.join(rules)}|"]
        # Rows that belong to the one above begin with blanks.
        rows = [
            [("&ensp;" if str(row[0]).startswith(" ") else "") + shown(row[0]).strip(), *map(shown, row[1:])]
            for row in self.rows
        ]
        body = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
        return "\n".join([f"### {self.title}", "", *([self.note, ""] if self.note else []), *header, *body, ""])

    def data(self) -> dict[str, Any]:
        """Returns it for JSON."""
        return asdict(self)


def shown(cell: Cell) -> str:
    """Returns a cell as a person reads it: three digits, or two behind the point.

    Args:
        cell: Cell of a table.

    >>> shown(1.234), shown(123.4), shown(0.00123), shown(None)
    ('1.23', '123', '0.00123', '')
    """
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.2f}" if abs(cell) >= 0.1 else f"{cell:.3g}"


def machine(device: str) -> str:
    """Says on what and with what it was measured.

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
    """Whether a cell is to be read, rather than a number with its unit or a blank."""
    return any(map(str.isalpha, text)) and not any(map(str.isdigit, text))
