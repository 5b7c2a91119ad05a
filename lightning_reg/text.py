"""Plain text for terminals: tables with aligned columns, durations."""

import textwrap
from collections.abc import Sequence

__all__ = ["counted", "duration", "table"]


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), indent: str = "", width: int = 0) -> list[str]:
    r"""Aligns cells in columns that are two spaces apart.

    Args:
        rows: Cells by row, the same number in each; a header is a row like any other.
        right: Indices of the right-aligned columns, such as numbers.
        indent: Prefix of every line.
        width: Longest line in characters, for which the last column is wrapped; 0 for no wrapping.

    Returns:
        The lines, without trailing spaces.

    >>> print("\n".join(table([["layer", "mean"], ["network.0", "0.1"]], right=[1])))
    layer      mean
    network.0   0.1
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(size) if index in right else cell.ljust(size)
            for index, (cell, size) in enumerate(zip(row, widths, strict=True))
        ]
        line = indent + "  ".join(cells).rstrip()
        if width and len(line) > width and row[-1]:
            start = indent + "".join(f"{cell}  " for cell in cells[:-1])
            # Where the first columns fill most of the line, a long word overflows rather than being broken.
            long_words = len(start) < width // 2
            lines += textwrap.wrap(
                row[-1],
                width,
                initial_indent=start,
                subsequent_indent=" " * len(start),
                break_long_words=long_words,
                break_on_hyphens=False,
            )
        else:
            lines.append(line)
    return lines


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, in the singular or the plural.

    Args:
        noun: The singular of a noun whose plural ends in s.

    >>> counted(1, "seed"), counted(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Returns a duration as text, in milliseconds, seconds, minutes or hours depending on its length.

    Args:
        seconds: Duration, at least 0.

    >>> duration(0.0213), duration(3.21), duration(125), duration(7300)
    ('21 ms', '3.2 s', '2 min 5 s', '2 h 1 min')
    """
    if round(1000 * seconds) < 1000:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
