"""What a column of a table is, inferred from what is written in it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lightning_reg.settings import SettingError

__all__ = ["Column", "Kind", "as_text", "column_of_numbers", "column_of_text", "typed_column"]

Kind = Literal["number", "boolean", "date", "text", "empty"]

_MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
_BOOLEANS = {"false": 0.0, "true": 1.0}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?)?")
_MOSTLY = 0.9


@dataclass(frozen=True)
class Column:
    """One column, complete.

    Attributes:
        kind: number; boolean, as 0 and 1; date, as days since 1970; text; empty, where every value is missing.
        values: (N,), float64 with NaN where a value is missing; for text, strings and None.
    """

    kind: Kind
    values: npt.NDArray[Any]

    @property
    def is_number(self) -> bool:
        """Whether the values are numbers."""
        return self.kind in ("number", "boolean", "date")

    @property
    def missing(self) -> npt.NDArray[np.bool_]:
        """(N,), where there is no value."""
        missing = np.isnan(self.values) if self.is_number else [value is None for value in self.values]
        return np.array(missing, dtype=np.bool_)


def column_of_numbers(values: npt.ArrayLike, *, kind: Kind = "number") -> Column:
    """Returns a column of numbers.

    Args:
        values: (N,), NaN where a value is missing.
        kind: number, boolean or date.
    """
    numbers = np.array(values, dtype=np.float64)  # a copy that may be written, whatever it comes from
    return Column("empty" if np.isnan(numbers).all() else kind, numbers)


def column_of_text(values: Sequence[str | None]) -> Column:
    """Returns a column of text.

    Args:
        values: None where a value is missing.
    """
    texts = np.empty(len(values), dtype=object)
    texts[:] = values
    return Column("empty" if all(value is None for value in values) else "text", texts)


def typed_column(name: str, texts: Sequence[str], *, is_text: bool, row: Callable[[int], str]) -> Column:
    """Finds out what is written in a column.

    A field is missing if it is empty or one of NA, N/A, NaN, null, None and ?, in capitals or not. What is left is
    numbers, ``true`` and ``false``, dates in ISO 8601 (2026-11-26, also with a time), or else text.

    Args:
        name: Of the column, for messages.
        texts: What is written.
        is_text: Whether it is text whatever it looks like.
        row: What a row is called in messages.

    Raises:
        SettingError: If more than nine of ten values are numbers and the rest are not: a slip rather than text.

    >>> typed_column("age", ["31", "NA", "4e1"], is_text=False, row=str).values
    array([31., nan, 40.])
    """
    all_numbers = None if is_text else _all_numbers(texts)
    if all_numbers is not None:
        return all_numbers
    meaning = {text: _stripped(text) for text in set(texts)}  # each text once: most columns repeat theirs
    values = [meaning[text] for text in texts]
    present = [value for value in values if value is not None]
    if is_text or not present:
        return column_of_text(values)
    distinct = set(present)
    numbers = {value: _number(value) for value in distinct}
    wrong = [index for index, value in enumerate(values) if value is not None and numbers[value] is None]
    if not wrong:
        return _translated(values, numbers)
    if len(wrong) < (1 - _MOSTLY) * len(present):
        raise SettingError(
            f"column {name!r} must be all numbers or all text, but has {values[wrong[0]]!r} in {row(wrong[0])} and "
            f"{len(present) - len(wrong)} numbers; correct it, or name the column in as_category"
        )
    if all(value.lower() in _BOOLEANS for value in distinct):
        return _translated(values, {value: _BOOLEANS[value.lower()] for value in distinct}, kind="boolean")
    if all(_DATE.fullmatch(value) for value in distinct):
        days = {value: _days(value) for value in distinct}
        for index, value in enumerate(values):
            if value is not None and days[value] is None:
                raise SettingError(f"column {name!r} must have dates that exist, but has {value!r} in {row(index)}")
        return _translated(values, days, kind="date")
    return column_of_text(values)


def _all_numbers(texts: Sequence[str]) -> Column | None:
    """Returns the column if it is numbers and gaps; None for any other, mostly after a look at its first value."""
    first = next((text for text in texts if _stripped(text) is not None), None)
    if first is None or _number(first) is None:
        return None
    try:
        return column_of_numbers(np.array(texts, dtype=np.float64))
    except ValueError:  # gaps, or something else than numbers
        filled = ["nan" if text.strip().lower() in _MISSING else text for text in texts]
    try:
        return column_of_numbers(np.array(filled, dtype=np.float64))
    except ValueError:
        return None


def _stripped(text: str) -> str | None:
    """Returns the text without blanks around it, None if that means that a value is missing."""
    stripped = text.strip()
    return None if stripped.lower() in _MISSING else stripped


def _translated(values: Sequence[str | None], numbers: Mapping[str, Any], *, kind: Kind = "number") -> Column:
    return column_of_numbers([np.nan if value is None else numbers[value] for value in values], kind=kind)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _days(text: str) -> float | None:
    """Days since 1970, with fractions; None for a day that doesn't exist."""
    try:
        return float(np.datetime64(text, "us").astype(np.int64)) / 86_400e6
    except ValueError:
        return None


def as_text(value: float) -> str:
    """Returns a number as one would write it: whole ones without a point.

    Args:
        value: The number.

    >>> as_text(3.0), as_text(0.5)
    ('3', '0.5')
    """
    return str(int(value)) if value == int(value) else repr(float(value))
