"""Reading tables with DuckDB: text files, parquet files, frames in memory; kinds of columns are inferred later."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lightning_reg import files
from lightning_reg.settings import SettingError

if TYPE_CHECKING:
    import duckdb

__all__ = ["MISSING", "RawTable", "opened_table"]

_TEXT = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
_PARQUET = (".parquet", ".pq")
# Columns per query: planning for hundreds takes longer than reading.
_PLANNED, _BLOCK, _CELLS = 16, 256, 2**22
_SEPARATORS = ",;\t|"
_START = 2**16  # bytes
# Spellings of a missing value; case doesn't matter in text files, which DuckDB needs spelled out.
MISSING = ("", "na", "n/a", "#n/a", "<na>", "nan", "null", "none", "?")
_MISSING_SPELLED = sorted({spelled for word in MISSING for spelled in (word, word.upper(), word.title(), word.lower())})
_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+")  # pandas' names for row numbers in parquet and CSV files


@dataclass(frozen=True)
class RawTable:
    """A table in DuckDB, called ``t``, whose columns are called ``c0``, ``c1``, ...

    Attributes:
        origin: Name of the table in messages.
        names: Names of the columns, as written in the table.
        types: DuckDB's types of the columns; VARCHAR throughout for a text file.
        text_file: Path of a text file, whose values decide the columns' kinds; None where columns have types.
        separator: Field separator of the text file.
        categories: Names of the columns that a frame has as categories, whatever DuckDB reads them as.
    """

    connection: duckdb.DuckDBPyConnection
    origin: str
    names: tuple[str, ...]
    types: tuple[str, ...]
    text_file: Path | None = None
    separator: str = ","
    categories: frozenset[str] = frozenset()

    @property
    def row_id(self) -> str:
        """SQL for the row number: only a text file is copied into a DuckDB table, which has one."""
        return "0" if self.text_file is None else "rowid"

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Returns the rows of a query."""
        return self.connection.execute(sql).fetchall()

    def values(self, expressions: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Returns the values of expressions over all rows, such as counts."""
        for start in range(0, len(expressions), _PLANNED):
            yield from self.query(f"SELECT {', '.join(expressions[start : start + _PLANNED])} FROM t")

    def arrays(self, expressions: Sequence[str]) -> Iterator[Any]:
        """Returns each expression's value in every row, as numpy arrays in the table's order."""
        [(rows,)] = self.query("SELECT count(*) FROM t")
        # DuckDB holds a result while numpy copies it, so with many rows only few columns are fetched at a time.
        block = max(min(_CELLS // max(rows, 1), _BLOCK), 2)
        for start in range(0, len(expressions), block):
            columns = ", ".join(
                f"{expression} AS v{number}" for number, expression in enumerate(expressions[start : start + block])
            )
            result = self.connection.execute(f"SELECT {columns} FROM t").fetchnumpy()
            yield from (result[f"v{number}"] for number in range(len(result)))

    def row(self, index: int) -> str:
        """Returns the name of a row in messages: its line in a text file, else its position from 0."""
        if self.text_file is None:
            return f"row {index}"
        with _text(self.text_file) as file:  # only for messages: DuckDB doesn't keep lines
            reader = csv.reader(file, delimiter=self.separator, skipinitialspace=True)
            records = (reader.line_num for record in reader if record)
            return next((f"line {line}" for number, line in enumerate(records) if number == index + 1), f"row {index}")

    def row_numbers(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Returns the names of columns of row numbers that pandas wrote, except for wanted ones."""
        found = []
        for position, name in enumerate(self.names):
            nameless = name == "" and position == 0
            if name not in wanted and (nameless or _INDEX.fullmatch(name)):
                column = f"c{position}"
                whole = f"TRY_CAST({column} AS BIGINT)"
                [(rows, distinct)] = self.query(f"SELECT count(*), count(DISTINCT {whole}) FROM t")
                if rows == distinct or name.startswith("__index"):
                    found.append(name)
        return tuple(found)


@contextmanager
def opened_table(source: Any, setting: str = "path") -> Iterator[RawTable]:
    """Opens a table in DuckDB and closes it afterwards; what doesn't fit into memory goes to a temporary folder.

    Args:
        source: Path of a file, or a pandas, polars or pyarrow frame.
        setting: Name of the setting that the path is of, for messages.

    Raises:
        SettingError: If it can't be read, with the line at fault if there is one.
    """
    import duckdb

    if isinstance(source, Path):
        _check_file(setting, source)
    with tempfile.TemporaryDirectory(prefix="lightning_reg-") as spill:
        settings: dict[str, Any] = {
            # A table is data: nothing in it or its name may be fetched, installed or looked up.
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,
            "temp_directory": spill,
        }
        with duckdb.connect(config=settings) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            if not isinstance(source, Path):
                table = _frame(connection, source)
            elif _ending(source) in _PARQUET:
                table = _parquet(connection, source)
            else:
                table = _text_file(connection, source)
            repeated = [name for name, count in Counter(table.names).items() if count > 1]
            if repeated:
                raise SettingError(
                    f"{table.origin} must have columns of different names, but has {repeated[0]!r} several times"
                )
            yield table


def _check_file(setting: str, path: Path) -> None:
    with files.opened(setting, path):  # a regular file that may be read
        pass
    if _ending(path) not in (*_TEXT, *_PARQUET):
        raise SettingError(
            f"{setting} must end with .csv, .tsv, .txt (or one of these and .gz), .parquet or .pq, but is {str(path)!r}"
        )


def _ending(path: Path) -> str:
    name = path.name.lower()
    return next((ending for ending in (*_TEXT, *_PARQUET) if name.endswith(ending)), "")


def _exact(path: Path) -> str:
    """Returns the path as a glob that matches nothing else: DuckDB reads file names as globs."""
    return re.sub(r"[\[*?]", lambda match: f"[{match[0]}]", str(path.absolute()))


def _aliases(count: int) -> str:
    return ", ".join(f"c{position}" for position in range(count))


def _typed(
    connection: duckdb.DuckDBPyConnection, origin: str, names: Sequence[str], categories: Iterable[str] = ()
) -> RawTable:
    types = [str(row[1]) for row in connection.execute("DESCRIBE t").fetchall()]
    return RawTable(connection, origin, tuple(names), tuple(types), categories=frozenset(categories))


def _frame(connection: duckdb.DuckDBPyConnection, frame: Any) -> RawTable:
    import duckdb

    columns: Any = getattr(frame, "column_names", None)  # pyarrow's; its columns are the data
    names = [str(name) for name in (getattr(frame, "columns", ()) if columns is None else columns)]
    if not names:
        raise SettingError(
            f"table must be a frame of pandas, polars or pyarrow, but is a {type(frame).__name__}; the name of a file "
            "belongs in path"
        )
    try:
        connection.register("frame", frame)
        connection.execute(f"CREATE VIEW t AS SELECT * FROM frame AS f({_aliases(len(names))})")
    except duckdb.NotImplementedException as error:
        raise SettingError(
            f"table must hold numbers, truth values, dates or text, but the {type(frame).__name__} holds others: "
            f"{_first_line(error)}"
        ) from error
    except (duckdb.Error, TypeError) as error:
        raise SettingError(
            f"table must be a frame of pandas, polars or pyarrow with columns, but is {type(frame).__name__}: "
            f"{_first_line(error)}"
        ) from error
    kinds = frame.schema.types if columns is not None else list(getattr(frame, "dtypes", ()))
    categories = [
        name for name, kind in zip(names, kinds, strict=False) if str(kind).startswith(("category", "dictionary<"))
    ]
    return _typed(connection, f"the {type(frame).__name__}", names, categories)


def _parquet(connection: duckdb.DuckDBPyConnection, path: Path) -> RawTable:
    import duckdb

    file = _literal(_exact(path))
    try:
        nodes = connection.execute(f"SELECT name, num_children FROM parquet_schema({file})").fetchall()
        names = _top_level(nodes)
        scan = f"read_parquet({file}, hive_partitioning = false)"
        connection.execute(f"CREATE VIEW t AS SELECT * FROM {scan} AS f({_aliases(len(names))})")
        connection.execute("SELECT * FROM t LIMIT 1")
    except duckdb.Error as error:
        raise SettingError(f"{path.name} can't be read as a parquet file: {_first_line(error)}") from error
    return _typed(connection, path.name, names)


def _top_level(nodes: Sequence[tuple[str, int | None]]) -> list[str]:
    """Returns a parquet file's column names as written: DuckDB renames those that differ only in case.

    The schema is a tree in preorder.
    """
    names, waiting = [], 0
    for name, children in nodes[1:]:
        if not waiting:
            names.append(name)
        waiting = max(waiting - 1, 0) + (children or 0)
    return names


def _text_file(connection: duckdb.DuckDBPyConnection, path: Path) -> RawTable:
    import duckdb

    _check_text(path)
    separator = _separator(connection, path)
    names = _names(path, separator)
    if not names:
        raise SettingError(f"{path.name} must have a line of column names, but is empty")
    columns = ", ".join(f"c{position}: 'VARCHAR'" for position in range(len(names)))
    missing = ", ".join(map(_literal, _MISSING_SPELLED))
    with _text(path) as file:  # DuckDB would take an empty line for the header
        skipped = sum(1 for _ in itertools.takewhile(lambda line: not line.strip("\r\n"), file))
    try:
        connection.execute(
            f"CREATE TABLE t AS FROM read_csv({_literal(_exact(path))}, auto_detect = false, header = true, "
            f"skip = {skipped}, delim = {_literal(separator)}, quote = '\"', escape = '\"', columns = {{{columns}}}, "
            f"nullstr = [{missing}], hive_partitioning = false, store_rejects = true)"
        )
        faults = connection.execute(
            "SELECT line, error_type, error_message FROM reject_errors ORDER BY line LIMIT 1"
        ).fetchall()
    except duckdb.Error as error:
        raise SettingError(_of_line_ends(path) or f"{path.name} can't be read: {_first_line(error)}") from error
    if faults:
        raise SettingError(_sentence(path, len(names), separator, *faults[0]))
    return RawTable(connection, path.name, tuple(names), ("VARCHAR",) * len(names), path, separator)


def _of_line_ends(path: Path) -> str | None:
    """Explains that lines end in several ways, for which DuckDB has no message; None if they don't."""
    names = {"\n": "LF", "\r": "CR", "\r\n": "CR LF"}
    first = None
    with _text(path) as file:
        for number, line in enumerate(file, 1):
            end = line[len(line.rstrip("\r\n")) :]
            first = first or end
            if end in names and end != first:
                return (
                    f"{path.name} must end all lines alike, with {names[first]} as the first, but line {number} ends "
                    f"with {names[end]}"
                )
    return None


def _check_text(path: Path) -> None:
    """Raises if a file begins with bytes that no text has: DuckDB has no message for images and the like."""
    with _binary(path) as file:
        start = file.read(_START)
    faulty = start.find(b"\0")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)  # incremental: the end may cut a character in two
    except UnicodeDecodeError as error:
        faulty = error.start
    if faulty >= 0:
        raise SettingError(_not_text(path, start.count(b"\n", 0, faulty) + 1))


def _separator(connection: duckdb.DuckDBPyConnection, path: Path) -> str:
    """Returns the separator that DuckDB detects, else the header's best: lines then differ in number of fields."""
    import duckdb

    try:
        sniffed = connection.execute(
            f"SELECT Delimiter, len(Columns) FROM sniff_csv({_literal(_exact(path))}, header = true, skip = 0, "
            "quote = '\"', escape = '\"', comment = '')"
        ).fetchone()
    except duckdb.Error:  # an empty file, or one for which reading has a better message
        sniffed = None
    if sniffed is not None and sniffed[1] > 1:
        return str(sniffed[0])
    return max(_SEPARATORS, key=lambda separator: len(_names(path, separator)))


def _names(path: Path, separator: str) -> list[str]:
    with _text(path) as file:
        for record in csv.reader(file, delimiter=separator, skipinitialspace=True):
            if record:
                return [name.strip() for name in record]
    return []


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    with _binary(path) as file, io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="") as text:
        yield text


@contextmanager
def _binary(path: Path) -> Iterator[gzip.GzipFile | io.BufferedReader]:
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise SettingError(f"{path.name} can't be read: {error}") from error


def _sentence(path: Path, width: int, separator: str, line: int, kind: str, message: str) -> str:
    if kind == "INVALID ENCODING":
        return _not_text(path, line)
    if kind in ("MISSING COLUMNS", "TOO MANY COLUMNS"):
        with _text(path) as file:  # DuckDB counts a field of several lines as one
            reader = csv.reader(file, delimiter=separator, skipinitialspace=True)
            lengths = ((reader.line_num, len(record)) for record in reader if record)
            line, fields = next((found for found in lengths if found[1] != width), (line, "another number"))
        return f"{path.name} must have {width} fields in every line, as in the first, but line {line} has {fields}"
    return f"{path.name} can't be read in line {line}: {message.splitlines()[0]}"


def _not_text(path: Path, line: int) -> str:
    return f"{path.name} must be UTF-8 text, but line {line} isn't"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
