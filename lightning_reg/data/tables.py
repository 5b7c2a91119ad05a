"""Where tables come from: files of one's own and those that ship with scikit-learn."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_reg.data.columns import Column, as_text, column_of_numbers, column_of_text, typed_column
from lightning_reg.settings import SettingError, check_choice, near_matches

__all__ = ["NAMED_TABLES", "Table", "named_table", "read_table"]

NAMED_TABLES = ("iris", "wine", "breast_cancer", "diabetes")
"""Tables that ship with scikit-learn. Diabetes has a number for target, the others classes."""

_SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Table:
    """A table in memory.

    Attributes:
        columns: By name, in the table's order, the target among them.
        target: Name of the target's column.
        origin: What it is called in messages.
        rows: What each row is called in messages; its position from 0 where None.
    """

    columns: dict[str, Column]
    target: str
    origin: str
    rows: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.columns[self.target].values)

    def row(self, index: int) -> str:
        """Returns what a row is called in messages.

        Args:
            index: Its position, from 0.
        """
        return self.rows[index] if self.rows is not None else f"row {index}"

    def check(self) -> None:
        """Raises unless every column can be used.

        Raises:
            SettingError: If there is no row, no column beside the target, a column without any value, an infinite
                number, or a target that is missing somewhere or always the same.
        """
        if not len(self):
            raise SettingError(f"{self.origin} must have rows, but has none")
        if len(self.columns) < 2:
            raise SettingError(f"{self.origin} must have a column beside the target {self.target!r}, but has none")
        for name, column in self.columns.items():
            if column.kind == "empty":
                raise SettingError(
                    f"column {name!r} of {self.origin} must have values, but all {len(self)} are missing; leave it out "
                    f"with ignore: [{name}]"
                )
            infinite = np.flatnonzero(np.isinf(column.values)).tolist() if column.is_number else []
            if infinite:
                where = f"{self.row(infinite[0])}{_more(len(infinite))}"
                raise SettingError(
                    f"column {name!r} of {self.origin} must have finite numbers, but has {column.values[infinite[0]]} "
                    f"in {where}; leave the field empty where a value is missing"
                )
        target = self.columns[self.target]
        absent = np.flatnonzero(target.missing)
        if len(absent):
            raise SettingError(
                f"target {self.target!r} must be known in every row of {self.origin}, but is missing in "
                f"{self.row(int(absent[0]))}{_more(len(absent))}"
            )
        if (target.values == target.values[0]).all():
            raise SettingError(
                f"target {self.target!r} must have different values, but is {target.values[0]} in all {len(self)} rows "
                f"of {self.origin}"
            )


def _more(count: int) -> str:
    return f" and {count - 1} more" if count > 1 else ""


def named_table(name: str) -> tuple[Table, tuple[str, ...]]:
    """Returns a table that ships with scikit-learn and the names of its classes, none where its target is a number.

    Args:
        name: One of ``NAMED_TABLES``.

    >>> table, classes = named_table("iris")
    >>> len(table), classes
    (150, ('setosa', 'versicolor', 'virginica'))
    """
    check_choice("dataset", name, NAMED_TABLES)
    from sklearn import datasets

    loaded: Any = getattr(datasets, f"load_{name}")()
    names = [str(name) for name in loaded.feature_names]  # plain text, for checkpoints
    columns = dict(zip(names, map(column_of_numbers, loaded.data.T), strict=True))
    classes = tuple(str(each) for each in loaded.get("target_names", ()))
    target = column_of_numbers(loaded.target)
    return Table({**columns, "target": target}, "target", name), classes


def read_table(path: Path, target: str, *, ignore: Sequence[str] = (), as_category: Sequence[str] = ()) -> Table:
    """Reads a file into memory and finds out what its columns are.

    Args:
        path: A text file with a line of names and a line a row (.csv, .tsv, .txt), or a .parquet file.
        target: Name of the column to predict.
        ignore: Columns to leave out.
        as_category: Columns whose values are names even where they look like numbers.

    Raises:
        SettingError: If the file can't be read, with the line if it is a line's fault, or a column isn't there.
    """
    if not path.is_file():
        raise SettingError(f"path must be a file that exists, but is {str(path)!r}")
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".txt", ".parquet", ".pq"):
        raise SettingError(f"path must end with .csv, .tsv, .txt, .parquet or .pq, but is {str(path)!r}")
    is_parquet = kind in (".parquet", ".pq")
    read = _read_parquet if is_parquet else _read_text
    names, values, rows = read(path)
    _check_names(path, names)
    for setting, wanted in (("target", [target]), ("ignore", ignore), ("as_category", as_category)):
        for name in wanted:
            if name not in names:
                near = near_matches(name, names, most=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise SettingError(
                    f"{setting} must be a column of {path.name}, which has {', '.join(names)}, but is {name!r}{hint}"
                )
    if target in ignore:
        raise SettingError(f"ignore must not name the target {target!r}")
    if not values or not len(values[0]):
        raise SettingError(f"{path.name} must have rows, but has none")

    def row(index: int) -> str:
        return rows[index] if rows is not None else f"row {index}"

    columns = {}
    for name, column in zip(names, values, strict=True):
        if name not in ignore:
            type_of = _arrow_column if is_parquet else typed_column
            columns[name] = type_of(name, column, is_text=name in as_category, row=row)
    return Table(columns, target, path.name, rows)


def _check_names(path: Path, names: Sequence[str]) -> None:
    if "" in names:
        raise SettingError(
            f"{path.name} must have a name for every column, but column {names.index('') + 1} of {len(names)} has none "
            "(pandas writes such a column of row numbers unless it is told index=False)"
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise SettingError(f"{path.name} must have columns of different names, but has {repeated[0]!r} several times")


def _read_text(path: Path) -> tuple[list[str], list[Sequence[str]], list[str]]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SettingError(f"{path.name} must be UTF-8 text, but line {line} isn't: {error.reason}") from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t|", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    fields: list[list[str]] = []
    lines: list[str] = []
    names: list[str] = []
    try:
        for record in reader:
            if not record:  # an empty line
                continue
            if not names:
                names = [name.strip() for name in record]
                continue
            if len(record) != len(names):
                raise SettingError(
                    f"{path.name} must have {len(names)} fields in every line, as in the first, but line "
                    f"{reader.line_num} has {len(record)}"
                )
            fields.append(record)
            lines.append(f"line {reader.line_num}")
    except csv.Error as error:
        raise SettingError(f"{path.name} can't be read in line {reader.line_num}: {error}") from error
    if not names:
        raise SettingError(f"{path.name} must have a line of column names, but is empty")
    return names, list(zip(*fields, strict=True)), lines


def _read_parquet(path: Path) -> tuple[list[str], list[Any], None]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise SettingError(
            f"path {str(path)!r} is a parquet file, which needs pyarrow: pip install 'lightning-reg[tabular]', or save "
            "the table as CSV"
        ) from error
    try:
        table = parquet.ParquetFile(path).read()
    except (OSError, pyarrow.ArrowException) as error:
        raise SettingError(f"{path.name} can't be read as a parquet file: {error}") from error
    return list(table.column_names), list(table.columns), None


def _arrow_column(name: str, values: Any, *, is_text: bool, row: Any) -> Column:
    import pyarrow
    from pyarrow import types

    kind = values.type
    if types.is_dictionary(kind):
        values, kind = values.cast(kind.value_type), kind.value_type
    is_number = any(check(kind) for check in (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean))
    if types.is_null(kind):
        return typed_column(name, [""] * len(values), is_text=is_text, row=row)
    if is_number and is_text:
        return column_of_text([None if each is None else as_text(float(each)) for each in values.to_pylist()])
    if is_number:
        numbers = values.cast(pyarrow.float64(), safe=False).to_numpy()
        return column_of_numbers(numbers, kind="boolean" if types.is_boolean(kind) else "number")
    if types.is_timestamp(kind) or types.is_date(kind):
        seconds = values.cast(pyarrow.timestamp("s"), safe=False).cast(pyarrow.int64())
        return column_of_numbers(seconds.cast(pyarrow.float64(), safe=False).to_numpy() / _SECONDS_A_DAY, kind="date")
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return column_of_text([None if each is None or not each.strip() else each for each in values.to_pylist()])
    raise SettingError(
        f"column {name!r} must hold numbers, truth values, dates or text, but holds {kind}; leave it out with "
        f"ignore: [{name}]"
    )
