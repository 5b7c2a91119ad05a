"""Sources of tables: your own files and frames, and those that ship with scikit-learn."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_reg.data.tables.columns import Column, column_of_numbers, read_columns
from lightning_reg.data.tables.reading import RawTable, opened_table
from lightning_reg.settings import SettingError, check_choice, near_matches

__all__ = ["NAMED_TABLES", "Table", "as_columns", "named_table", "read_table"]

NAMED_TABLES = ("iris", "wine", "breast_cancer", "diabetes")
"""Tables that ship with scikit-learn. The target of diabetes is a number, those of the others are classes."""

_LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class Table:
    """A table in memory.

    Attributes:
        columns: Columns by name, in the table's order, including the targets.
        targets: Names of the columns to predict.
        origin: Name of the table in messages.
        notes: Anything the user should know about how the table was read.
        splitters: Names of the columns that decide how rows are split and aren't inputs.
    """

    columns: dict[str, Column]
    targets: tuple[str, ...]
    origin: str
    notes: tuple[str, ...] = ()
    splitters: tuple[str, ...] = ()

    @property
    def inputs(self) -> dict[str, Column]:
        """The columns that are inputs of a prediction, by name."""
        return {name: column for name, column in self.columns.items() if name not in (*self.targets, *self.splitters)}

    def __len__(self) -> int:
        return len(self.columns[self.targets[0]].values)

    def check(self, row: Callable[[int], str] = "row {}".format) -> None:
        """Raises unless every column can be used.

        Args:
            row: Function from a row's position to its name in messages.

        Raises:
            SettingError: If there is no row, no column beside the target, a column without any value, a number that is
                infinite or too large, or a target that is missing somewhere or always the same.
        """
        if not len(self):
            raise SettingError(f"{self.origin} must have rows, but has none")
        if not self.inputs:
            names = ", ".join(map(repr, self.targets))
            raise SettingError(f"{self.origin} must have a column beside the target {names}, but has none")
        for name, column in self.columns.items():
            if column.kind == "empty":
                raise SettingError(
                    f"column {name!r} of {self.origin} must have values, but all {len(self)} are missing; leave it out "
                    f"with ignore: [{name}]"
                )
            beyond = np.flatnonzero(np.abs(column.values) > _LARGEST).tolist() if column.is_number else []
            if beyond:
                value, where = column.values[beyond[0]], f"{row(beyond[0])}{_more(len(beyond))}"
                kind = "finite numbers" if np.isinf(value) else "numbers that 32 bits can hold"
                raise SettingError(
                    f"column {name!r} of {self.origin} must have {kind}, but has {value} in {where}; leave the field "
                    "empty where a value is missing"
                )
        for name in (*self.targets, *self.splitters):
            column, role = self.columns[name], "target" if name in self.targets else "column"
            absent = np.flatnonzero(column.missing)
            if len(absent):
                raise SettingError(
                    f"{role} {name!r} must be known in every row of {self.origin}, but is missing in "
                    f"{row(int(absent[0]))}{_more(len(absent))}"
                )
            if (column.values == column.values[0]).all():
                raise SettingError(
                    f"{role} {name!r} must have different values, but is {column.written(0)} in all {len(self)} rows "
                    f"of {self.origin}{column.note_on_rounding}"
                )


def _more(count: int) -> str:
    return f" and {count - 1} more" if count > 1 else ""


def named_table(name: str) -> tuple[Table, tuple[str, ...]]:
    """Returns a table that ships with scikit-learn and the names of its classes; none where its target is a number.

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
    classes = tuple(str(name) for name in loaded.get("target_names", ()))
    target = column_of_numbers(loaded.target)
    return Table({**columns, "target": target}, ("target",), name), classes


def read_table(
    source: Any,
    targets: Sequence[str],
    *,
    setting: str = "path",
    ignore: Sequence[str] = (),
    as_category: Sequence[str] = (),
    needed: Sequence[str] = (),
    splitters: Mapping[str, str] | None = None,
    only: Sequence[str] | None = None,
) -> Table:
    """Reads a table into memory, infers the kinds of its columns, and checks that they can be used.

    Args:
        source: Path of a text file with a header and one line per row (.csv, .tsv, .txt, optionally with .gz) or of a
            .parquet file; or a pandas, polars or pyarrow frame.
        targets: Names of the columns to predict.
        setting: Name of the setting that the path is of, for messages.
        ignore: Columns to leave out.
        as_category: Columns that are categories even where they look like numbers.
        needed: Text columns that must exist although no setting names them.
        splitters: Columns that decide how rows are split, by the setting that names them.
        only: Columns to read, as far as they exist; None for all.

    Raises:
        SettingError: If the table can't be read or used, with the line at fault if there is one, or a column is
            missing.
    """
    with opened_table(source, setting) as raw:
        splitters = splitters or {}
        wanted = [("target", targets), ("ignore", ignore), ("as_category", as_category)]
        wanted += [(role, [name]) for role, name in splitters.items()]
        for role, names in wanted:
            for name in names:
                _check_name(raw, role, name)
        for name in needed:
            if name not in raw.names:
                raise SettingError(f"{raw.origin} must have a column {name!r}, but has {', '.join(raw.names)}")
        _check_roles(targets, ignore, splitters)
        if not raw.query("SELECT count(*) FROM t")[0][0]:
            raise SettingError(f"{raw.origin} must have rows, but has none")
        row_numbers = raw.row_numbers([*targets, *as_category, *needed, *splitters.values()])
        left_out = {*ignore, *row_numbers, *(() if only is None else set(raw.names) - set(only))}
        if "" in raw.names and "" not in left_out:
            raise SettingError(
                f"{raw.origin} must have a name for every column, but column {raw.names.index('') + 1} of "
                f"{len(raw.names)} has none"
            )
        positions = [position for position, name in enumerate(raw.names) if name not in left_out]
        categories = {*as_category, *needed, *(raw.categories - {*splitters.values()})}
        texts = {position for position in positions if raw.names[position] in categories}
        found = read_columns(raw, positions, as_text=texts)
        columns = {raw.names[position]: column for position, column in zip(positions, found, strict=True)}
        notes = [f"column {name!r} of {raw.origin} is left out: pandas' row numbers" for name in row_numbers]
        notes += [column.note for column in columns.values() if column.note]
        table = Table(columns, tuple(targets), raw.origin, tuple(notes), tuple(splitters.values()))
        table.check(raw.row)
        return table


def as_columns(name: str, value: str | Iterable[str] | None) -> tuple[str, ...]:
    """Returns names of columns as a tuple; a single one may be given as a string, and None stands for none.

    Args:
        name: Name of the argument, as the user writes it.

    Raises:
        SettingError: If the value is neither.

    >>> as_columns("ignore", "id"), as_columns("ignore", ["id", "name"])
    (('id',), ('id', 'name'))
    """
    if value is None or isinstance(value, str):
        return () if value is None else (value,)
    if not isinstance(value, Iterable):
        raise SettingError(f"{name} must be the name of a column, or several, but is {value!r}")
    return tuple(value)


def _check_roles(targets: Sequence[str], ignore: Sequence[str], splitters: Mapping[str, str]) -> None:
    repeated = [name for name in targets if list(targets).count(name) > 1]
    if repeated:
        raise SettingError(f"target must name different columns, but names {repeated[0]!r} several times")
    for name in targets:
        if name in ignore:
            raise SettingError(f"ignore must not name the target {name!r}")
    for setting, name in splitters.items():
        if name in targets or name in ignore:
            role = "target" if name in targets else "ignore"
            raise SettingError(f"{setting} must not name a column that {role} names, too, but is {name!r}")


def _check_name(raw: RawTable, setting: str, name: str) -> None:
    if name not in raw.names:
        near = near_matches(str(name), raw.names, most=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SettingError(
            f"{setting} must be a column of {raw.origin}, which has {', '.join(raw.names)}, but is {name!r}{hint}"
        )
