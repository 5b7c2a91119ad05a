"""What a column of a table is: by its type, or in a text file by what is written in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lightning_reg.data.reading import MISSING, RawTable
from lightning_reg.settings import SettingError

__all__ = ["Column", "Kind", "as_text", "column_of_numbers", "read_column"]

Kind = Literal["number", "boolean", "date", "text", "empty"]

_MOSTLY = 0.9
_BLANKS = r"' ' || chr(9) || chr(10) || chr(11) || chr(12) || chr(13) || chr(160)"
_WORDS = ", ".join(f"'{word}'" for word in MISSING)
_NUMBER = r"(?i)[+-]?((0|[1-9][0-9]*)([.][0-9]*)?|[.][0-9]+)(e[+-]?[0-9]+)?|[+-]?inf(inity)?"
_DATE = r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.]\d+)?)?(Z|[+-]\d{2}(:?\d{2})?)?)?"
# Numbers as they are written elsewhere: what stands between thousands, and before decimals.
_FORMATS = ((",", "."), ("[.]", ","), ("[ '’\u00a0\u202f]", "."), ("[ '’\u00a0\u202f]", ","))
_WHOLE = ("INT", "INTEGER", "BIGNUM")  # TINYINT, UHUGEINT, ...
_DAYS = "epoch_us({}) / 86400e6"  # since 1970


@dataclass(frozen=True)
class Column:
    """One column, complete.

    Attributes:
        kind: number; boolean, as 0 and 1; date, as days since 1970; text; empty, where every value is missing.
        values: (N,), float64 with NaN where a value is missing; for text, positions in ``texts``, -1 where missing.
        texts: The different texts of a column of text, sorted.
        note: What was done to read it that its user should know.
    """

    kind: Kind
    values: npt.NDArray[Any]
    texts: tuple[str, ...] = ()
    note: str = ""

    @property
    def is_number(self) -> bool:
        """Whether the values are numbers."""
        return self.kind in ("number", "boolean", "date")

    @property
    def missing(self) -> npt.NDArray[np.bool_]:
        """(N,), where there is no value."""
        return np.isnan(self.values) if self.is_number else self.values < 0

    def written(self, index: int) -> str:
        """Returns a value as one would write it."""
        return as_text(self.values[index]) if self.is_number else self.texts[self.values[index]]


def column_of_numbers(values: npt.ArrayLike, *, kind: Kind = "number", note: str = "") -> Column:
    """Returns a column of numbers.

    Args:
        values: (N,), NaN where a value is missing.
        kind: number, boolean or date.
        note: See :class:`Column`.
    """
    numbers = np.ascontiguousarray(values, dtype=np.float64)
    if not numbers.flags.writeable:  # torch refuses to share what it might write to
        numbers = numbers.copy()
    if np.isnan(numbers).all():
        return Column("empty", np.full(len(numbers), -1))
    return Column(kind, numbers, note=note)


def read_column(table: RawTable, position: int, *, is_text: bool) -> Column:
    """Reads one column of a table.

    In a text file, what isn't missing is numbers, ``true`` and ``false``, dates in ISO 8601 (2026-11-26, also with a
    time and a zone), or else text. Digits behind a leading zero (``007``) are text, because a number would lose it.

    Args:
        table: The table.
        position: Of the column.
        is_text: Whether it is text whatever it looks like.

    Raises:
        SettingError: If more than nine of ten values are numbers and the rest are not (a slip rather than text), or a
            number may mean two things, or the column holds something else.
    """
    column = f"c{position}"
    if table.text_file is not None:
        return (None if is_text else _plain_numbers(table, column)) or _written(table, position, is_text=is_text)
    name, kind = table.names[position], table.types[position]
    text, number, found = _of_type(column, kind)
    if found is None:
        raise SettingError(
            f"column {name!r} must hold numbers, truth values, dates or text, but holds {kind}; leave it out with "
            f"ignore: [{name}]"
        )
    return _texts(table, text) if is_text or number is None else column_of_numbers(_numbers(table, number), kind=found)


def _of_type(column: str, kind: str) -> tuple[str, str | None, Kind | None]:
    """Returns a column of this type as text, as a number where it can be one, and what it is."""
    text = f"CAST({column} AS VARCHAR)"
    number: str | None = None
    found: Kind | None = None
    if kind == "VARCHAR" or kind.startswith("ENUM"):
        text, found = f"nullif(trim({text}, {_BLANKS}), '')", "text"
    elif kind == "BOOLEAN":
        number, found = column, "boolean"
    elif kind in ("FLOAT", "DOUBLE"):  # whole numbers with gaps are fractions in many files
        whole = f"isfinite({column}) AND {column} = trunc({column})"
        digits = f"CAST(CAST({column} AS HUGEINT) AS VARCHAR)"
        text = f"CASE WHEN isnan({column}) THEN NULL WHEN {whole} THEN {digits} ELSE {text} END"
        number, found = column, "number"
    elif kind.startswith("DECIMAL") or kind.endswith(_WHOLE):
        number, found = column, "number"
    elif kind == "DATE" or kind.startswith("TIMESTAMP"):
        instant = column if kind == "TIMESTAMP WITH TIME ZONE" else f"CAST({column} AS TIMESTAMP)"
        number, found = _DAYS.format(instant), "date"
    elif kind == '"NULL"':
        found = "empty"
    return text, number, found


def _numbers(table: RawTable, expression: str, source: str = "t") -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = table.array(f"coalesce(TRY_CAST({expression} AS DOUBLE), 'nan'::DOUBLE)", source)
    return values


def _plain_numbers(table: RawTable, column: str) -> Column | None:
    """The column if it is nothing but numbers and gaps, by comparisons that are cheap in millions of rows."""
    zeros = " OR ".join(f"{column} BETWEEN '{sign}00' AND '{sign}0:'" for sign in ("", "-", "+"))  # ":" comes after 9
    odd = f"contains({column}, '_') OR {column} < '!' OR {zeros}"
    [(rows, present, oddities)] = table.query(f"SELECT count(*), count({column}), count(*) FILTER ({odd}) FROM t")
    if oddities or not present:
        return None
    values = _numbers(table, column)
    return None if np.isnan(values).sum() != rows - present else column_of_numbers(values)


def _written(table: RawTable, position: int, *, is_text: bool) -> Column:
    """Any column of a text file, by its different values."""
    name, stripped = table.names[position], f"trim(c{position}, {_BLANKS})"
    _distinct(table, f"CASE WHEN lower({stripped}) NOT IN ({_WORDS}) THEN {stripped} END")
    [(present, true_or_false, dates)] = table.query(
        f"SELECT sum(n), sum(n) FILTER (lower(v) IN ('true', 'false')), "
        f"sum(n) FILTER (regexp_full_match(v, '{_DATE}')) FROM d"
    )
    if is_text or not present:
        return _coded(table)
    numbers = _written_numbers(table, name, present)
    if numbers is not None:
        return numbers
    if true_or_false == present:
        return column_of_numbers(_numbers(table, "CAST(lower(v) = 'true' AS INT)", "s"), kind="boolean")
    if dates == present:
        instant = "TRY_CAST(v AS TIMESTAMPTZ)"
        absent = table.query(f"SELECT v, first FROM d WHERE {instant} IS NULL ORDER BY first LIMIT 1")
        if absent:
            value, row = absent[0]
            raise SettingError(f"column {name!r} must have dates that exist, but has {value!r} in {table.row(row)}")
        return column_of_numbers(_numbers(table, _DAYS.format(instant), "s"), kind="date")
    return _coded(table)


def _written_numbers(table: RawTable, name: str, present: int) -> Column | None:
    """Numbers, however they are written, as long as it is one way throughout; None for anything else."""
    ways = [(_NUMBER, "v"), *map(_format, _FORMATS)]
    matched = ", ".join(f"coalesce(sum(n) FILTER (regexp_full_match(v, {_sql(pattern)})), 0)" for pattern, _ in ways)
    [counts] = table.query(f"SELECT {matched} FROM d")
    fitting = [plain for (_, plain), count in zip(ways, counts, strict=True) if count == present]
    if not fitting and present - max(counts) < (1 - _MOSTLY) * present:
        pattern = ways[counts.index(max(counts))][0]
        wrong = f"SELECT v, first FROM d WHERE NOT regexp_full_match(v, {_sql(pattern)}) ORDER BY first LIMIT 1"
        [(value, row)] = table.query(wrong)
        raise SettingError(
            f"column {name!r} must be all numbers or all text, but has {value!r} in {table.row(row)} and "
            f"{max(counts)} numbers; correct it, or name the column in as_category"
        )
    if not fitting:
        return None
    if fitting[0] == "v":
        return column_of_numbers(_numbers(table, "v", "s"))
    for other in fitting[1:]:
        one, two = (f"CAST({plain} AS DOUBLE)" for plain in (fitting[0], other))
        doubtful = table.query(f"SELECT v, first, {one}, {two} FROM d WHERE {one} <> {two} ORDER BY first LIMIT 1")
        if doubtful:
            value, row, *meanings = doubtful[0]
            raise SettingError(
                f"column {name!r} must have numbers that mean one thing, but has {value!r} in {table.row(row)}, which "
                f"is {' or '.join(map(as_text, meanings))}; write them without separators of thousands and with a "
                "point before decimals, or name the column in as_category"
            )
    [(value, number)] = table.query(
        f"SELECT v, CAST({fitting[0]} AS DOUBLE) FROM d ORDER BY regexp_full_match(v, {_sql(_NUMBER)}), first LIMIT 1"
    )
    note = f"{name!r} has numbers such as {value!r}, read as {as_text(number)}"
    return column_of_numbers(_numbers(table, fitting[0], "s"), note=note)


def _format(marks: tuple[str, str]) -> tuple[str, str]:
    """The pattern of numbers with these marks, and what makes plain ones of them."""
    group, decimal = marks
    whole = f"0|[1-9][0-9]{{0,2}}({group}[0-9]{{3}})+|[1-9][0-9]*"
    without = f"regexp_replace(v, {_sql(group)}, '', 'g')"
    return f"[+-]?({whole})([{decimal}][0-9]+)?", f"replace({without}, '{decimal}', '.')"


def _texts(table: RawTable, expression: str) -> Column:
    _distinct(table, expression)
    return _coded(table)


def _distinct(table: RawTable, expression: str) -> None:
    """Makes the tables ``s``, the column with NULL where a value is missing, and ``d``, its different values."""
    table.connection.execute(f"CREATE OR REPLACE TABLE s AS SELECT {expression} AS v FROM t")
    table.connection.execute(
        "CREATE OR REPLACE TABLE d AS SELECT v, count(*) AS n, min(rowid) AS first FROM s WHERE v IS NOT NULL "
        "GROUP BY v ORDER BY v"
    )


def _coded(table: RawTable) -> Column:
    texts: Sequence[str] = [row[0] for row in table.query("SELECT v FROM d ORDER BY v")]
    if not texts:
        return Column("empty", table.array("-1", "s"))
    table.connection.execute("DROP TYPE IF EXISTS texts; CREATE TYPE texts AS ENUM (SELECT v FROM d ORDER BY v)")
    codes = table.array("CAST(coalesce(enum_code(CAST(v AS texts)), -1) AS BIGINT)", "s")
    return Column("text", codes, tuple(texts))


def _sql(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def as_text(value: float) -> str:
    """Returns a number as one would write it: whole ones without a point.

    Args:
        value: The number.

    >>> as_text(3.0), as_text(0.5)
    ('3', '0.5')
    """
    return str(int(value)) if value == int(value) else repr(float(value))
