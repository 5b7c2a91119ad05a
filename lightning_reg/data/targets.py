"""What is to be predicted of a table, and how its rows are split by it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_reg.data.columns import Column, as_text
from lightning_reg.data.splits import chosen_count, stratified_split
from lightning_reg.settings import SettingError

__all__ = ["classes_and_targets", "target_split"]

_MOST_WHOLE_NUMBERS = 20
_STRATA = 10


def classes_and_targets(
    column: Column, *, name: str, task: str, names: Sequence[str] = ()
) -> tuple[tuple[str, ...], Tensor]:
    """Returns the classes, none for regression, and the targets: class indices, int64, or numbers, float32.

    Args:
        column: The target's, with a value in every row.
        name: The target's.
        task: classification, regression or auto: classes if the target is text, truth values, or at most 20 different
            whole numbers.
        names: Of the classes, in the order of their values, where they are known.

    Raises:
        SettingError: If the task doesn't go with the target.

    >>> from lightning_reg.data.columns import column_of_numbers
    >>> classes_and_targets(column_of_numbers([7, 3, 7]), name="grade", task="auto")
    (('3', '7'), tensor([1, 0, 1]))
    """
    values = column.values
    whole = column.is_number and bool((values == np.round(values)).all())
    if not _is_classification(column, task, whole):
        if not column.is_number:
            raise SettingError(f"task must be classification for a target of text, {name!r}, but is {task}")
        return (), torch.from_numpy(values).float()
    if column.is_number and not whole:
        fraction = values[values != np.round(values)][0]
        raise SettingError(
            f"task must be regression for a target of fractions, but is {task} for {name!r}, which has {fraction}"
        )
    distinct, labels = np.unique(values if column.is_number else values.astype(str), return_inverse=True)
    if column.kind == "boolean":
        names = ("false", "true")
    found = tuple(names) or tuple(as_text(value) if column.is_number else str(value) for value in distinct)
    return found, torch.from_numpy(labels).long()


def _is_classification(column: Column, task: str, whole: bool) -> bool:
    if task != "auto":
        return task == "classification"
    few = whole and column.kind == "number" and len(np.unique(column.values)) <= _MOST_WHOLE_NUMBERS
    return few or column.kind in ("text", "boolean")


def target_split(
    targets: Tensor, size: int | float, *, seed: int, name: str, classes: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Splits rows in two, stratified by class or by tenths of the target.

    Args:
        targets: (N,), class indices, or numbers where there are no classes.
        size: Of the chosen part: a number of rows, or a fraction in (0, 1].
        seed: Which of all such splits.
        name: The argument that asked for it, for messages; with train_size, nothing but the chosen part is used.
        classes: Names of the classes; none for regression.

    Returns:
        Sorted positions of the chosen part and of the rest.

    Raises:
        SettingError: If ``size`` is out of its range or leaves a class without rows in a part that is used.

    >>> chosen, rest = target_split(torch.linspace(0, 1, 20), 10, seed=0, name="val_size", classes=())
    >>> (chosen // 2).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    keeps_rest = name != "train_size"
    if not classes:
        # Equally many rows in each stratum, in the order of the target; as many strata as every part has rows.
        count = chosen_count(size, len(targets), name=name)
        rest = len(targets) - count if keeps_rest else count
        strata = max(min(_STRATA, count, rest), 1)
        targets = targets.argsort(stable=True).argsort() * strata // len(targets)
        classes = [f"stratum {number} of the target" for number in range(strata)]
    return stratified_split(targets, size, seed=seed, name=name, classes=classes, keeps_rest=keeps_rest)
