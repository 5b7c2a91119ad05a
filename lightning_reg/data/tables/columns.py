"""Columns of a table: their kinds come from the file's types or, in a text file, from the values."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lightning_reg.data.tables.reading import MISSING, RawTable
from lightning_reg.settings import SettingError

__all__ = ["Column", "Kind", "as_text", "column_of_numbers", "read_columns"]

Kind = Literal["number", "boolean", "date", "text", "empty"]

_MOSTLY = 0.9
_MANY = 20  # codes with a letter among numbers, such as grades, are fewer
_BLANKS = r"' ' || chr(9) || chr(10) || chr(11) || chr(12) || chr(13) || chr(160)"
_WORDS = ", ".join(f"'{word}'" for word in MISSING)
_NUMBER = r"(?i)[+-]?((0|[1-9][0-9]*)([.][0-9]*)?|[.][0-9]+)(e[+-]?[0-9]+)?|[+-]?inf(inity)?"
_DATE = r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.]\d+)?)?(Z|[+-]\d{2}(:?\d{2})?)?)?"
# Other number formats: separator of thousands, decimal mark.
_FORMATS = ((",", "."), ("[.]", ","), ("[ '’\u00a0\u202f]", "."), ("[ '’\u00a0\u202f]", ","))
_WHOLE = ("INT", "INTEGER", "BIGNUM")  # TINYINT, UHUGEINT, ...
_ROUNDED = 2.0**53  # from here on float64 leaves out whole numbers
_DAYS = "epoch_us({}) / 86400e6"  # since 1970


@dataclass(frozen=True)
class Column:
    """One column of a table, with all its rows.

    Attributes:
        kind: number; boolean, as 0 and 1; date, as days since 1970; text; empty, where every value is missing.
        values: (N,), float64 with NaN where a value is missing; for text, positions in ``texts``, -1 where missing.
        texts: Distinct texts of a text column, sorted.
        note: Anything the user should know about how the column was read.
    """

    kind: Kind
    values: npt.NDArray[Any]
    texts: tuple[str, ...] = ()
    note: str = ""

    @property
    def is_number(self) -> bool:
        """Whether the values are numbers: of the kinds number, boolean and date."""
        return self.kind in ("number", "boolean", "date")

    @property
    def missing(self) -> npt.NDArray[np.bool_]:
        """(N,), True where a value is missing."""
        return np.isnan(self.values) if self.is_number else self.values < 0

    @property
    def note_on_rounding(self) -> str:
        """The end of a sentence about a column that never changes; empty where no number may have been rounded."""
        if self.kind != "number" or not (np.abs(self.values) >= _ROUNDED).any():
            return ""
        return (
            " as it is read: numbers keep 15 digits; if these differ beyond, name the column in as_category, or leave "
            "it out with ignore"
        )

    def written(self, index: int) -> str:
        """Returns a value as text."""
        return as_text(self.values[index]) if self.is_number else self.texts[self.values[index]]


def column_of_numbers(values: npt.ArrayLike, *, kind: Kind = "number", note: str = "") -> Column:
    """Returns a column of numbers; empty where all are missing.

    Args:
        values: (N,), NaN where a value is missing.
        kind: number, boolean or date.
        note: See :class:`Column`.
    """
    numbers = np.ascontiguousarray(values, dtype=np.float64)
    if not numbers.flags.writeable:  # torch warns of sharing read-only memory
        numbers = numbers.copy()
    if np.isnan(numbers).all():
        return Column("empty", np.full(len(numbers), -1))
    return Column(kind, numbers, note=note)


def read_columns(table: RawTable, positions: Sequence[int], *, as_text: Collection[int]) -> Iterator[Column]:
    """Reads columns of a table.

    In a text file, values are numbers, ``true`` and ``false``, dates in ISO 8601 (2026-11-26, optionally with a time
    and a zone), or else text. Digits behind a leading zero (``007``) are text, because a number would lose it. Where
    columns have types, text may be dates, but numbers as text are categories: somebody has made them text.

    Args:
        as_text: Positions of the columns that are text whatever they look like.

    Raises:
        SettingError: If more than nine of ten values are numbers and the rest are not (a typo rather than text), or
            many are and the rest are one word (a missing value), a number is ambiguous, or a column holds values of
            another type.
    """
    numbers: dict[int, str] = {}
    kinds: dict[int, Kind] = {}
    texts = {position: f"c{position}" for position in positions}
    if table.text_file is not None:
        numbers = {position: f"c{position}" for position in _likely_numbers(table, [*{*positions} - {*as_text}])}
    else:
        for position in positions:
            text, number, kind = _of_type(f"c{position}", table.types[position])
            if kind is None:
                name = table.names[position]
                raise SettingError(
                    f"column {name!r} must hold numbers, truth values, dates or text, but holds "
                    f"{table.types[position]}; leave it out with ignore: [{name}]"
                )
            texts[position], kinds[position] = text, kind
            if number is not None and position not in as_text:
                numbers[position] = number
    arrays = dict(zip(numbers, table.arrays([_double(number) for number in numbers.values()]), strict=True))
    present = dict(zip(numbers, _counts(table, [f"count({number})" for number in numbers.values()]), strict=True))
    for position in positions:
        values = arrays.pop(position, None)
        if values is not None and (position in kinds or (~np.isnan(values)).sum() == present[position]):
            yield column_of_numbers(values, kind=kinds.get(position, "number"))
        else:
            yield _by_distinct_values(
                table,
                position,
                texts[position],
                is_text=position in as_text or table.types[position] != "VARCHAR",
            )


def _counts(table: RawTable, expressions: Sequence[str]) -> list[int]:
    return [count for row in table.values(expressions) for count in row]


def _double(expression: str) -> str:
    return f"coalesce(TRY_CAST({expression} AS DOUBLE), 'nan'::DOUBLE)"


def _likely_numbers(table: RawTable, positions: Sequence[int]) -> list[int]:
    """Returns the columns of a text file that casts can read as numbers, by comparisons that are cheap on many rows."""
    odd = []
    for column in (f"c{position}" for position in positions):
        # A leading zero before another digit: ":" comes after 9.
        zeros = " OR ".join(f"{column} BETWEEN '{sign}00' AND '{sign}0:'" for sign in ("", "-", "+"))
        odd.append(f"coalesce(bool_or(contains({column}, '_') OR {column} < '!' OR {zeros}), false)")
    firsts = [f"TRY_CAST(any_value(c{position}) AS DOUBLE) IS NOT NULL" for position in positions]
    found = zip(positions, _counts(table, odd), _counts(table, firsts), strict=True)
    return sorted(position for position, oddities, is_number in found if is_number and not oddities)


def _of_type(column: str, kind: str) -> tuple[str, str | None, Kind | None]:
    """Returns SQL for a column of this type as text, SQL for it as a number where it can be one, and its kind."""
    text = f"CAST({column} AS VARCHAR)"
    number: str | None = None
    found: Kind | None = None
    if kind == "VARCHAR" or kind.startswith("ENUM"):
        found = "text"
    elif kind == "BOOLEAN":
        number, found = column, "boolean"
    elif kind in ("FLOAT", "DOUBLE"):  # whole numbers with missing values are floats in many files
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


def _by_distinct_values(table: RawTable, position: int, expression: str, *, is_text: bool) -> Column:
    """Returns a column whose distinct values are parsed once each."""
    name, stripped = table.names[position], f"trim(raw, {_BLANKS})"
    missing = _WORDS if table.text_file is not None else "''"
    table.connection.execute(
        f"CREATE OR REPLACE TABLE d AS SELECT raw, CASE WHEN lower({stripped}) NOT IN ({missing}) THEN {stripped} END "
        f"AS v, n, first FROM (SELECT {expression} AS raw, count(*) AS n, min({table.row_id}) AS first FROM t "
        "GROUP BY raw) WHERE raw IS NOT NULL ORDER BY raw"
    )
    [(present, true_or_false, dates, *counts)] = table.query(
        "SELECT coalesce(sum(n), 0), sum(n) FILTER (lower(v) IN ('true', 'false')), "
        f"sum(n) FILTER (regexp_full_match(v, '{_DATE}'))"
        + "".join(f", coalesce(sum(n) FILTER ({_matches(pattern)}), 0)" for pattern, _ in _WAYS)
        + " FROM d WHERE v IS NOT NULL"
    )
    table.connection.execute("DROP TYPE IF EXISTS raws; CREATE TYPE raws AS ENUM (SELECT raw FROM d)")
    [codes] = table.arrays([f"CAST(coalesce(enum_code(CAST({expression} AS raws)), -1) AS BIGINT)"])
    if not present:
        return Column("empty", np.full(len(codes), -1))
    if not is_text and dates == present:
        return _dates(table, name, codes)
    if is_text or table.text_file is None:
        return _texts(table, codes, note="" if is_text or counts[0] != present else _told_of_fractions(table, name))
    number = _written_number(table, name, present, counts)
    if number is not None:
        return column_of_numbers(_looked_up(table, number[0], codes), note=number[1])
    if true_or_false == present:
        return column_of_numbers(_looked_up(table, "CAST(lower(v) = 'true' AS INT)", codes), kind="boolean")
    return _texts(table, codes)


def _told_of_fractions(table: RawTable, name: str) -> str:
    """Returns a note if a column of numbers that are text has other than whole ones, which are rarely codes."""
    fraction = _first(table, "v", f"NOT {_matches('[+-]?[0-9]+')}")
    looks = f"column {name!r} is text, and has categories although it looks like numbers, such as "
    return f"{looks}{fraction[0]!r}" if fraction else ""


def _dates(table: RawTable, name: str, codes: npt.NDArray[np.int64]) -> Column:
    instant = "TRY_CAST(v AS TIMESTAMPTZ)"
    absent = np.flatnonzero(_looked_up(table, f"CAST(v IS NOT NULL AND {instant} IS NULL AS INT)", codes) == 1)
    if len(absent):
        row = int(absent[0])
        [(value,)] = table.query(f"SELECT v FROM d ORDER BY raw LIMIT 1 OFFSET {codes[row]}")
        raise SettingError(f"column {name!r} must have dates that exist, but has {value!r} in {table.row(row)}")
    return column_of_numbers(_looked_up(table, _DAYS.format(instant), codes), kind="date")


def _first(table: RawTable, wanted: str, condition: str) -> tuple[Any, ...] | None:
    found = table.query(f"SELECT {wanted} FROM d WHERE {condition} ORDER BY first LIMIT 1")
    return found[0] if found else None


def _looked_up(table: RawTable, expression: str, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Returns a number per row from a number per distinct value; NaN for code -1, a missing value."""
    values = [row[0] for row in table.query(f"SELECT {_double(expression)} FROM d ORDER BY raw")]
    return np.array([*values, np.nan])[codes]


def _texts(table: RawTable, codes: npt.NDArray[np.int64], note: str = "") -> Column:
    values = [row[0] for row in table.query("SELECT v FROM d ORDER BY raw")]
    texts = sorted({value for value in values if value is not None})
    place = {text: position for position, text in enumerate(texts)}
    return Column("text", np.array([*(place.get(value, -1) for value in values), -1])[codes], tuple(texts), note)


def _written_number(table: RawTable, name: str, present: int, counts: Sequence[int]) -> tuple[str, str] | None:
    """Returns SQL that parses the values as numbers, if all have one format, and a note for the user."""
    fitting = [plain for (_, plain), count in zip(_WAYS, counts, strict=True) if count == present]
    pattern = _WAYS[counts.index(max(counts))][0]
    if not fitting and (present - max(counts) < (1 - _MOSTLY) * present or _has_one_word(table, pattern)):
        value, row = _first(table, "v, first", f"v IS NOT NULL AND NOT {_matches(pattern)}") or ("", 0)
        raise SettingError(
            f"column {name!r} must be all numbers or all text, but has {value!r} in {table.row(row)} and "
            f"{max(counts)} numbers; correct it, leave the field empty where a value is missing, or name the column in "
            "as_category"
        )
    if not fitting or fitting[0] == "v":
        return (fitting[0], "") if fitting else None
    one = f"CAST({fitting[0]} AS DOUBLE)"
    for two in (f"CAST({other} AS DOUBLE)" for other in fitting[1:]):
        doubtful = _first(table, f"v, first, {one}, {two}", f"{one} <> {two}")
        if doubtful:
            value, row, *meanings = doubtful
            raise SettingError(
                f"column {name!r} must have numbers that mean one thing, but has {value!r} in {table.row(row)}, which "
                f"is {' or '.join(map(as_text, meanings))}; write them without separators of thousands and with a "
                "point before decimals, or name the column in as_category"
            )
    value, number = _first(table, f"v, {one}", f"v IS NOT NULL AND NOT {_matches(_NUMBER)}") or ("", 0.0)
    return fitting[0], f"{name!r} has numbers such as {value!r}, read as {as_text(number)}"


def _has_one_word(table: RawTable, pattern: str) -> bool:
    """Whether there are many different numbers and one word beside them, as for a missing value, rather than codes."""
    [(numbers, others, words)] = table.query(
        f"SELECT count(DISTINCT v) FILTER ({_matches(pattern)}), count(DISTINCT v) FILTER (NOT {_matches(pattern)}), "
        f"count(DISTINCT v) FILTER (NOT regexp_matches(v, '[0-9]')) FROM d WHERE v IS NOT NULL"
    )
    return bool(numbers > _MANY and others == words == 1)


def _matches(pattern: str) -> str:
    return f"regexp_full_match(v, {_sql(pattern)})"


def _format(marks: tuple[str, str]) -> tuple[str, str]:
    """Returns the pattern of numbers with these marks, and SQL that makes them plain numbers."""
    group, decimal = marks
    whole = f"0|[1-9][0-9]{{0,2}}({group}[0-9]{{3}})+|[1-9][0-9]*"
    without = f"regexp_replace(v, {_sql(group)}, '', 'g')"
    return f"[+-]?({whole})([{decimal}][0-9]+)?", f"replace({without}, '{decimal}', '.')"


def _sql(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def as_text(value: float) -> str:
    """Returns a number as text, whole numbers without a decimal point.

    >>> as_text(3.0), as_text(0.5)
    ('3', '0.5')
    """
    return str(int(value)) if value == int(value) else repr(float(value))


_WAYS = ((_NUMBER, "v"), *map(_format, _FORMATS))
"""Patterns of numbers, each with SQL that makes them plain numbers."""
