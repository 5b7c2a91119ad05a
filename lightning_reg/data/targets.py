"""Targets of a table: classes, numbers, or several labels per row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_reg.data.tables.columns import Column, as_text
from lightning_reg.settings import SettingError

__all__ = ["Targets", "Task", "targets_of"]

Task = Literal["classification", "regression", "multilabel"]

_MOST_WHOLE_NUMBERS = 20
_ROWS_A_CLASS = 3  # one each for training, validation and testing


@dataclass(frozen=True)
class Targets:
    """Targets to predict, of all rows.

    Attributes:
        task: Kind of prediction: classification, regression or multilabel.
        classes: Names of the classes or, for multilabel, of the labels; empty for regression.
        values: Class indices (N,), int64; for regression numbers (N,), or (N, T) for several, float32; for multilabel
            (N, T), float32, 1 where a row has the label.
    """

    task: Task
    classes: tuple[str, ...]
    values: Tensor

    @property
    def order(self) -> Tensor:
        """(N,), a sort key that puts similar rows side by side, by which splits are stratified."""
        if self.task == "multilabel":  # by the combination of labels
            return self.values.double() @ (2.0 ** torch.arange(self.values.shape[1], dtype=torch.float64))
        return self.values if self.values.ndim == 1 else self.values[:, 0]


def targets_of(columns: Mapping[str, Column], *, task: str, names: Sequence[str] = ()) -> Targets:
    """Returns the targets of a table's columns.

    Args:
        columns: Target columns by name, with a value in every row.
        task: classification, regression, multilabel or auto. For one target, auto means classification if it is text,
            boolean, or has at most 20 distinct whole numbers; for several it means multilabel if all are 0 and 1 or
            boolean, and else regression.
        names: Names of the classes, in the order of their values, where they are known.

    Raises:
        SettingError: If the task doesn't match the targets.

    >>> from lightning_reg.data.tables.columns import column_of_numbers
    >>> targets_of({"grade": column_of_numbers([7, 3, 7])}, task="auto")
    Targets(task='classification', classes=('3', '7'), values=tensor([1, 0, 1]))
    """
    if len(columns) > 1:
        return _several(columns, task)
    [(name, column)] = columns.items()
    if task == "multilabel":
        raise SettingError(f"target must name several columns where task is multilabel, but names {name!r} alone")
    values = column.values
    whole = column.is_number and bool((values == np.round(values)).all())
    if not _is_classification(column, task, whole):
        if not column.is_number:
            raise SettingError(f"task must be classification for a target of text, {name!r}, but is {task}")
        return Targets("regression", (), _numbers(column))
    if column.is_number and not whole:
        fraction = values[values != np.round(values)][0]
        raise SettingError(
            f"task must be regression for a target of fractions, but is {task} for {name!r}, which has {fraction}"
        )
    distinct, labels = np.unique(values, return_inverse=True)
    if len(distinct) > _MOST_WHOLE_NUMBERS and _ROWS_A_CLASS * len(distinct) > len(values):
        raise SettingError(
            f"target {name!r} must have values that repeat, or numbers, but is {column.kind} with {len(distinct)} "
            f"different values in {len(values)} rows; name a column of classes, "
            f"{'set task to regression' if column.is_number else 'or one of numbers to predict them'}"
        )
    if column.kind == "boolean":
        names = ("false", "true")
    written = [as_text(value) if column.is_number else column.texts[value] for value in distinct]
    return Targets("classification", tuple(names) or tuple(written), torch.from_numpy(labels).long())


def _is_classification(column: Column, task: str, whole: bool) -> bool:
    if task != "auto":
        return task == "classification"
    few = whole and column.kind == "number" and len(np.unique(column.values)) <= _MOST_WHOLE_NUMBERS
    return few or column.kind in ("text", "boolean")


def _several(columns: Mapping[str, Column], task: str) -> Targets:
    if task == "classification":
        raise SettingError(
            f"task must be multilabel or regression for several targets, {', '.join(columns)}, but is classification"
        )
    texts = [name for name, column in columns.items() if not column.is_number]
    if texts:
        raise SettingError(
            f"target must name columns of numbers, or of 0 and 1, where it names several, but {texts[0]!r} is text"
        )
    labels = {name: bool(np.isin(column.values, (0, 1)).all()) for name, column in columns.items()}
    if task == "multilabel":
        for name, fits in labels.items():
            if not fits:
                column = columns[name].values
                other = as_text(column[~np.isin(column, (0, 1))][0])
                raise SettingError(
                    f"target {name!r} must be 0 or 1 in every row where task is multilabel, but has {other}"
                )
    values = torch.stack([_numbers(column) for column in columns.values()], 1)
    is_multilabel = task == "multilabel" or (task == "auto" and all(labels.values()))
    return Targets("multilabel", tuple(columns), values) if is_multilabel else Targets("regression", (), values)


def _numbers(column: Column) -> Tensor:
    return torch.from_numpy(column.values).float()  # 32 bits can hold them, as `Table.check` ensures
