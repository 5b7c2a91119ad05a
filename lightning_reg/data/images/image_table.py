"""Image folders with a table of labels: several labels per image, numbers, or classes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_reg.data.images.folders import check_folder, first_shape, read_images
from lightning_reg.data.images.sources import LabeledImages
from lightning_reg.data.tables.columns import Column
from lightning_reg.data.tables.sources import Table, read_table
from lightning_reg.data.targets import targets_of
from lightning_reg.settings import SettingError

__all__ = ["ImageTable"]

_FILE, _PART = "file", "part"
_PARTS = ("train", "val", "test")


class ImageTable:
    """Images in a folder, and a table with one row per image.

    The table has a column ``file``, the path of the image below the folder, and columns of targets; other columns are
    ignored. An optional column ``part`` is train, val or test; without it all images are for training.

    Args:
        table: Path of the table, a text or parquet file.
        targets: Names of the columns to predict.
        task: See `targets_of`.
        group_column: Column whose equal values are never in two parts.
        image_size: Height and width in pixels: the shorter side is scaled to it and the center is cropped. If None, all
            images must have one size already.
        cache: Whether decoded images are cached on disk.

    Raises:
        SettingError: If the table can't be used, a part is unknown, a file is named twice or a group is in two parts.
    """

    flips: ClassVar[tuple[str, ...]] = ("horizontal", "vertical")  # nothing speaks against either

    def __init__(
        self,
        root: Path,
        table: Path,
        targets: Sequence[str],
        *,
        task: str = "auto",
        group_column: str | None = None,
        image_size: int | None = None,
        cache: bool = False,
    ) -> None:
        check_folder(root, image_size)
        for setting, name in (*(("target", name) for name in targets), ("group_column", group_column)):
            if name in (_FILE, _PART):
                raise SettingError(f"{setting} must not be {name!r}, the column that says which image a row is of")
        self.image_size = image_size
        self.cache = cache
        splitters = {} if group_column is None else {"group_column": group_column}
        rows = read_table(
            table,
            targets,
            setting="labels",
            needed=[_FILE],
            splitters=splitters,
            only=[_FILE, _PART, *targets, *splitters.values()],
        )
        found = targets_of({name: rows.columns[name] for name in targets}, task=task)
        self.task, self.classes = found.task, found.classes
        self.num_targets = None if found.task == "classification" else found.values[0].numel()
        self._files, self._targets = _files(rows, root), found.values
        parts = _parts(rows)
        self._rows = {part: [row for row, given in enumerate(parts) if given == part] for part in _PARTS}
        self.groups: Tensor | None = None
        if group_column is not None:
            self.groups = _groups(rows.columns[group_column], parts)[self._rows["train"]]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(3, H, W) of one image."""
        return first_shape(self._files[self._rows["train"][0]], self.image_size)

    def has(self, split: str) -> bool:
        """Returns whether the table has images for a split."""
        return bool(self._rows[split])

    def files(self, split: str) -> list[Path]:
        """Returns the images of a split, in the order they are loaded."""
        return [self._files[row] for row in self._rows[split]]

    def load(self) -> tuple[LabeledImages, LabeledImages | None, LabeledImages | None]:
        """Reads the training, validation and test images into memory; None where the table has none for them.

        Raises:
            SettingError: If an image is missing, broken or of another size.
        """
        shape = self.input_shape
        train, val, test = (
            LabeledImages(
                read_images(self.files(part), shape, self.image_size, cache=self.cache),
                self._targets[self._rows[part]],
            )
            if self.has(part)
            else None
            for part in _PARTS
        )
        if train is None:
            raise SettingError("column 'part' must be train in some rows")
        return train, val, test


def _files(rows: Table, root: Path) -> list[Path]:
    names = rows.columns[_FILE]
    if names.missing.any():
        raise SettingError(f"column 'file' of {rows.origin} must have a name in every row, but lacks one")
    written = [Path(names.written(row)) for row in range(len(rows))]
    outside = next((path for path in written if path.is_absolute() or ".." in path.parts), None)
    if outside is not None:
        raise SettingError(
            f"column 'file' of {rows.origin} must say where images lie below root, but has {str(outside)!r}"
        )
    repeated = next((path for path, count in Counter(written).items() if count > 1), None)
    if repeated is not None:
        raise SettingError(
            f"column 'file' of {rows.origin} must name each image once, but names {repeated.as_posix()!r} again"
        )
    return [root / path for path in written]


def _parts(rows: Table) -> list[str]:
    if _PART not in rows.columns:
        return ["train"] * len(rows)
    column = rows.columns[_PART]
    parts = [column.written(row) if not column.missing[row] else "" for row in range(len(rows))]
    unknown = next((part for part in parts if part not in _PARTS), None)
    if unknown is not None or "train" not in parts:
        problem = "has no train" if unknown is None else f"has {unknown!r}"
        raise SettingError(f"column 'part' of {rows.origin} must be train, val or test, but {problem}")
    return parts


def _groups(column: Column, parts: Sequence[str]) -> Tensor:
    """Returns the group index of each row."""
    _, groups = np.unique(column.values, return_inverse=True)
    place: dict[int, str] = {}
    for row, (group, part) in enumerate(zip(groups.tolist(), parts, strict=True)):
        if place.setdefault(group, part) != part:
            raise SettingError(
                f"group_column must have no group in two parts, but {column.written(row)!r} is in {place[group]} and "
                f"{part}"
            )
    return torch.from_numpy(groups)
