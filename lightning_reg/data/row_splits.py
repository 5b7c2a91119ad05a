"""Splits of rows into training, validation and test parts: at random, by group, or by time."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_reg.data.splits import check_size, chosen_count, stratified_folds, stratified_split
from lightning_reg.data.targets import Targets
from lightning_reg.settings import SettingError, check_count

__all__ = ["RowSplitter"]

_STRATA = 10
_GROUP_FOLDS = 20  # a part of whole groups is made of twentieths


@dataclass(frozen=True)
class RowSplitter:
    """A split of the rows of a table; equal on every rank and in every run with these settings.

    Args:
        val_size: Part of the rows outside the test part that is for validation: a number or a fraction.
        test_size: Part of all rows that is for testing: a number or a fraction; None for no test.
        train_size: Number or fraction of the remaining rows to train on; None for all.
        folds: Number of folds of all rows, one of which is for testing, or for validation where ``test_size`` is None;
            None for no folds.
        fold: Index of the held-out fold, from 0.
        repeat: Index of the test part or of the partition into folds.
        seed: Seed of the other parts.
    """

    val_size: int | float
    test_size: int | float | None
    train_size: int | float | None
    folds: int | None
    fold: int
    repeat: int
    seed: int

    def __post_init__(self) -> None:
        check_size("val_size", self.val_size)
        for name, size in (("test_size", self.test_size), ("train_size", self.train_size)):
            if size is not None:
                check_size(name, size)
        check_count("fold", self.fold, low=0)
        check_count("repeat", self.repeat, low=0)
        if self.folds is None:
            if self.fold:
                raise SettingError(f"folds must say how many there are where fold is given, but fold is {self.fold}")
            return
        check_count("folds", self.folds, low=2)
        if self.fold >= self.folds:
            raise SettingError(f"fold must be in [0, {self.folds - 1}] for {self.folds} folds, but is {self.fold}")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide which rows are held out."""
        return {name: value for name, value in asdict(self).items() if name != "train_size"}

    def split(
        self, targets: Targets, *, groups: Tensor | None = None, times: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the sorted row positions of each part: ``train``, ``val`` and perhaps ``test``.

        Args:
            targets: Targets that parts are stratified by: by class, by deciles of a number, or by combinations of
                labels.
            groups: (N,), group indices; rows of one group are never in two parts.
            times: (N,); held-out rows are later than training rows, and rows of equal time are in one part.

        Raises:
            SettingError: If the sizes are impossible, or a part would lack a class.
        """
        if times is not None:
            rows = self._by_time(times)
        elif groups is not None:
            rows = self._at_random(targets, lambda *given, **named: _of_groups(groups, *given, **named))
        else:
            rows = self._at_random(targets, _of_rows)
        _check_classes(targets, rows)
        return rows

    def _at_random(self, targets: Targets, parts: Callable[..., Tensor]) -> dict[str, Tensor]:
        rest = torch.arange(len(targets.values))
        rows: dict[str, Tensor] = {}
        if self.folds is not None:
            fold = parts(targets, rest, None, folds=self.folds, seed=self.repeat, name="folds")
            held_out = fold == self.fold
            rows["val" if self.test_size is None else "test"], rest = rest[held_out], rest[~held_out]
        elif self.test_size is not None:
            # Always the same, whatever the run's seed, so that no run trains on it.
            held_out = parts(targets, rest, self.test_size, folds=0, seed=self.repeat, name="test_size")
            rows["test"], rest = rest[held_out], rest[~held_out]
        if "val" not in rows:
            held_out = parts(targets, rest, self.val_size, folds=0, seed=self.seed, name="val_size")
            rows["val"], rest = rest[held_out], rest[~held_out]
        return {**rows, "train": self.chosen(targets, rest)}

    def chosen(self, targets: Targets, rows: Tensor) -> Tensor:
        """Returns the training rows in use: all of ``rows``, or as many as ``train_size`` says."""
        if self.train_size is None or chosen_count(self.train_size, len(rows), name="train_size") == len(rows):
            return rows
        chosen = _of_rows(targets, rows, self.train_size, folds=0, seed=self.seed, name="train_size", keeps_rest=False)
        return rows[chosen]

    def _by_time(self, times: Tensor) -> dict[str, Tensor]:
        if self.repeat:
            raise SettingError(f"repeat must be 0 where time_column splits rows, without chance, but is {self.repeat}")
        rest = times.argsort(stable=True)
        rows: dict[str, Tensor] = {}
        before = 1 if self.test_size is None else 2  # times for training and perhaps validation, before the part
        if self.folds is not None:
            # Each fold is tested after training on the rows before it, so the first rows are trained on in all folds.
            size = len(rest) / (self.folds + 1)
            wanted = [round(size * (fold + 1)) for fold in range(self.folds)]
            boundaries = [*_boundaries(times[rest], wanted, before=before), len(rest)]
            begin, end = boundaries[self.fold : self.fold + 2]
            rows["val" if self.test_size is None else "test"], rest = rest[begin:end], rest[:begin]
        elif self.test_size is not None:
            rows["test"], rest = _latest(times, rest, self.test_size, before=before, name="test_size")
        if "val" not in rows:
            rows["val"], rest = _latest(times, rest, self.val_size, before=1, name="val_size")
        if self.train_size is not None:
            rest = rest[len(rest) - chosen_count(self.train_size, len(rest), name="train_size") :]
        return {name: chosen.sort().values for name, chosen in {**rows, "train": rest}.items()}


def _latest(times: Tensor, rows: Tensor, size: int | float, *, before: int, name: str) -> tuple[Tensor, Tensor]:
    wanted = len(rows) - chosen_count(size, len(rows), name=name)
    [boundary] = _boundaries(times[rows], [wanted], before=before)
    return rows[boundary:], rows[:boundary]


def _boundaries(ordered: Tensor, wanted: Sequence[int], *, before: int) -> list[int]:
    """Returns the positions nearest to the wanted ones at which other times begin, with ``before`` times before all."""
    begins = np.flatnonzero(np.diff(ordered.numpy())) + 1
    possible = begins[before - 1 :]
    if len(possible) < len(wanted):
        raise SettingError(
            f"time_column must have enough different times for each part, here {before + len(wanted)}, but has "
            f"{len(begins) + 1} among {len(ordered)} rows"
        )
    chosen: list[int] = []
    first = 0
    for number, position in enumerate(wanted, start=1):
        near = possible[first : len(possible) - (len(wanted) - number)]  # each part has a time of its own
        nearest = int(np.abs(near - position).argmin())
        chosen.append(int(near[nearest]))
        first += nearest + 1
    return chosen


def _strata(targets: Targets, rows: Tensor, most: int) -> tuple[Tensor, list[str]]:
    """Returns the stratum of each row and the strata's names: classes, or equal parts in the order of the target."""
    if targets.task == "classification":
        return targets.values[rows], list(targets.classes)
    count = max(min(_STRATA, most), 1)
    ranks = targets.order[rows].argsort(stable=True).argsort()
    return ranks * count // len(rows), [f"stratum {number} of the target" for number in range(count)]


def _of_rows(
    targets: Targets,
    rows: Tensor,
    size: int | float | None,
    *,
    folds: int,
    seed: int,
    name: str,
    keeps_rest: bool = True,
) -> Tensor:
    """Returns the fold of each row or, without folds, whether it is in the part of the given size.

    ``name`` is for messages; ``keeps_rest`` says whether the other rows are used, too, and need all classes.
    """
    if size is None:
        if folds > len(rows):
            raise SettingError(f"folds must be at most {len(rows)}, the number of rows, but is {folds}")
        labels, classes = _strata(targets, rows, len(rows) // folds)
        return stratified_folds(labels, folds, seed=seed, classes=classes)
    count = chosen_count(size, len(rows), name=name)
    # As many strata as every part that is used has rows.
    labels, classes = _strata(targets, rows, min(count, len(rows) - count) if keeps_rest else count)
    chosen, _ = stratified_split(labels, size, seed=seed, name=name, classes=classes, keeps_rest=keeps_rest)
    mask = torch.zeros(len(rows), dtype=torch.bool)
    mask[chosen] = True
    return mask


def _of_groups(
    groups: Tensor, targets: Targets, rows: Tensor, size: int | float | None, *, folds: int, seed: int, name: str
) -> Tensor:
    """Does the same as `_of_rows` for whole groups, as nearly stratified as these allow."""
    from sklearn.model_selection import StratifiedGroupKFold

    members = groups[rows].numpy()
    distinct = len(np.unique(members))
    parts = folds or min(_GROUP_FOLDS, distinct)
    if distinct < max(parts, 2):
        raise SettingError(
            f"group_column must have at least {max(parts, 2)} groups for {name}, but has {distinct} among {len(rows)} "
            "rows"
        )
    labels, _ = _strata(targets, rows, len(rows) // parts)
    fold = np.empty(len(rows), dtype=np.int64)
    # It refuses classes that are rarer than folds; whether a part lacks one is checked afterwards.
    labels = torch.where(torch.bincount(labels)[labels] < parts, labels.new_full((), int(labels.mode().values)), labels)
    dealt = StratifiedGroupKFold(parts, shuffle=True, random_state=seed).split(members, labels.numpy(), members)
    for number, (_, chosen) in enumerate(dealt):
        fold[chosen] = number
    if size is None:
        return torch.from_numpy(fold)
    wanted = chosen_count(size, len(rows), name=name)
    return torch.from_numpy(np.isin(fold, _nearest_sum(np.bincount(fold, minlength=parts), wanted)))


def _nearest_sum(sizes: npt.NDArray[np.int64], wanted: int) -> list[int]:
    """Returns the positions of those sizes whose sum is nearest to the wanted one: neither none of them nor all."""
    total = int(sizes.sum())
    reached = np.zeros((len(sizes) + 1, total + 1), dtype=np.bool_)  # by the sizes before each: the sums they can have
    reached[0, 0] = True
    for number, size in enumerate(sizes):
        reached[number + 1] = reached[number]
        reached[number + 1, size:] |= reached[number, : total + 1 - size]
    possible = np.flatnonzero(reached[-1, 1:total]) + 1
    rest, chosen = int(possible[np.abs(possible - wanted).argmin()]), []
    for number in reversed(range(len(sizes))):
        if not reached[number, rest]:
            chosen.append(number)
            rest -= int(sizes[number])
    return chosen


def _check_classes(targets: Targets, rows: dict[str, Tensor]) -> None:
    """Raises if the training rows lack a class, or all rows of a part have the same one."""
    if targets.task == "regression":
        return
    if targets.task == "multilabel":
        share = targets.values[rows["train"]].mean(0)
        for label, found in zip(targets.classes, share.tolist(), strict=True):
            if found in (0, 1):
                raise SettingError(
                    f"target {label!r} must be 0 in some training rows and 1 in others, but is {found:g} in all "
                    f"{len(rows['train'])}; give the other parts fewer rows, or leave the target out"
                )
        return
    counts = torch.bincount(targets.values[rows["train"]], minlength=len(targets.classes))
    if (counts == 0).any():
        missing = targets.classes[int(counts.argmin())]
        raise SettingError(f"training rows must have every class, but none of {len(rows['train'])} is of {missing!r}")
    for part, chosen in rows.items():
        labels = targets.values[chosen]
        if (labels == labels[0]).all():
            raise SettingError(
                f"the {part} rows must have several classes, but all {len(chosen)} are of "
                f"{targets.classes[int(labels[0])]!r}; choose another seed, fold or size"
            )
