"""Data module for tables: your own file or frame, or a table by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_reg.core.hyperparameters import save_plain_hyperparameters
from lightning_reg.data.in_memory import InMemoryData
from lightning_reg.data.loader import SampleDataset
from lightning_reg.data.paths import as_path
from lightning_reg.data.row_splits import RowSplitter
from lightning_reg.data.tables.encoding import Scaling, TableEncoder
from lightning_reg.data.tables.sources import NAMED_TABLES, as_columns, named_table, read_table
from lightning_reg.data.targets import targets_of
from lightning_reg.functional.preparation import one_hot_columns
from lightning_reg.settings import SettingError, check_choice
from lightning_reg.transforms import Mixing, RowMixing

__all__ = ["TabularData"]


class TabularData(InMemoryData):
    """A table, held in memory: numbers scaled, gaps filled, categories encoded by what the training rows say.

    Batches are (inputs, targets): inputs (N, D), float32, the columns of numbers in the table's order, then an
    indicator of 0 and 1 for each that has missing values in the training rows, then the categories. Targets are class
    indices (N,), or (N, classes) probabilities where ``mix`` mixes targets; for regression numbers in the target's
    unit, (N,), or (N, T) for several targets; for multilabel (N, T), float32, 1 where a row has the label.

    The kind of each column is inferred: numbers; ``true`` and ``false``, which become 1 and 0; dates in ISO 8601, which
    become days; text, which is categorical, and so is what a frame has as categories. Empty fields, NA, N/A, #N/A,
    <NA>, NaN, null, None and ? are missing values. Codes with leading zeros are categories. Numbers with decimal commas
    or separators of thousands are read where they are unambiguous, and refused where they aren't. Row numbers that
    pandas wrote are left out. A missing number becomes the median; a missing category is a category of its own, and one
    that the training rows don't have counts as missing. All this is reported when training starts, and checkpoints keep
    the constants.

    Args:
        dataset: iris, wine, breast_cancer or diabetes (regression), which ship with scikit-learn; None for your own
            table.
        path: Path of your own table: a text file (.csv, .tsv, .txt, optionally with .gz; UTF-8, with column names in
            the first line, separated by comma, semicolon, tab or bar) or a .parquet file.
        table: Your own table in memory, for use in Python: a pandas, polars or pyarrow frame.
        target: Column to predict, or several.
        ignore: Columns to leave out: row numbers, names, anything that isn't known at prediction time.
        as_category: Columns that are categories although they look like numbers, such as postal codes.
        task: ``classification``, ``regression``, ``multilabel`` (any number of labels per row: several targets of 0 and
            1), or ``auto``: for one target classification where it is text, boolean, or has at most 20 distinct whole
            numbers; for several multilabel where all are 0 and 1; else regression.
        numeric: Scaling of numbers: ``standard`` (to mean 0 and standard deviation 1), ``quantile`` (to a normal
            distribution, whatever theirs is: for skewed columns and outliers), ``none``.
        categorical: ``one_hot`` (a column of 0 and 1 for each category, for any network) or ``embed`` (a code for each
            column, for a network with embeddings, such as ``MLP``; better where there are many categories). For mixing,
            ``embed`` gives one-hot blocks in training, which the embedding mixes as it would mix codes.
        batch_size: Rows per batch and process.
        val_size: Part of the training rows to hold out for validation: a number of rows or a fraction. Stratified by
            class, by deciles of a number, or by combinations of labels.
        test_size: Part of all rows to hold out for testing, the same whatever the seed: a number of rows or a fraction;
            None for no test.
        train_size: Number or fraction of the remaining rows to train on; None for all.
        folds: Number of folds of all rows for cross-validation, in place of ``test_size``. One of them is for testing,
            or for validation where ``test_size`` is None. None for no folds.
        fold: Index of the held-out fold, from 0.
        repeat: Index of the test part, or of the partition into folds, for repeated splits.
        group_column: Column whose equal values are never in two parts, such as a patient. It isn't an input.
        time_column: Column of dates or numbers by which rows are held out: test rows are later than training rows.
            Folds follow each other in time, each predicted from the rows before it. It isn't an input.
        mix: Mixing of every training batch, on the device; classes become probabilities, numbers are interpolated.
            Transforms that swap or blank whole columns (``RowCutMix``, ``RowCutout``) act on the table's columns.
        mix_epochs: Number of epochs with mixing, after which rows stay as they are; None mixes in all epochs.
        num_workers: Worker processes that fetch batches; 0 is the fastest for a table in memory.
        pin_memory: Whether to put batches into pinned memory, for faster transfer to a GPU.
        seed: Seed of splits, subsets, shuffling and mixing; splits are equal on every rank and in every run.

    Raises:
        SettingError: If a name is unknown, a number is out of range, or the table can't be used.

    >>> data = TabularData(dataset="wine", batch_size=64)
    >>> data.input_shape, data.num_classes
    ((13,), 3)
    """

    _input_kind = "rows"
    _splits: dict[str, SampleDataset]

    def __init__(
        self,
        *,
        # On the command line ImageData is the default, and where another class is chosen, the parser keeps those of its
        # values that match an argument there in name and type: this type mustn't let "digits" through.
        dataset: Literal["iris", "wine", "breast_cancer", "diabetes"] | None = None,
        path: str | Path | None = None,
        table: Any = None,
        target: str | list[str] | None = None,
        ignore: Sequence[str] = (),
        as_category: Sequence[str] = (),
        task: Literal["auto", "classification", "regression", "multilabel"] = "auto",
        numeric: Scaling = "standard",
        categorical: Literal["one_hot", "embed"] = "one_hot",
        batch_size: int = 128,
        val_size: int | float = 0.1,
        test_size: int | float | None = 0.2,
        train_size: int | float | None = None,
        folds: int | None = None,
        fold: int = 0,
        repeat: int = 0,
        group_column: str | None = None,
        time_column: str | None = None,
        mix: Mixing | None = None,
        mix_epochs: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            mix=mix,
            mix_epochs=mix_epochs,
            num_workers=num_workers,
            pin_memory=pin_memory,
            seed=seed,
        )
        targets = list(as_columns("target", target))
        self.ignore = as_columns("ignore", ignore)
        self.as_category = as_columns("as_category", as_category)
        _check_source(dataset, path, table, targets, [*self.ignore, *self.as_category, group_column, time_column])
        check_choice("task", task, ["auto", "classification", "regression", "multilabel"])
        if group_column is not None and time_column is not None:
            raise SettingError("group_column and time_column must not both be given: rows are split by one of them")
        check_choice("numeric", numeric, ["standard", "quantile", "none"])
        check_choice("categorical", categorical, ["one_hot", "embed"])
        self.dataset = dataset
        self.path = None if path is None else as_path("path", path)
        self.target = target
        self.numeric = numeric
        self.categorical = categorical
        self.val_size = val_size
        self.test_size = test_size
        self.train_size = train_size
        self.group_column = group_column
        self.time_column = time_column
        self._splitter = RowSplitter(
            val_size=val_size,
            test_size=test_size,
            train_size=train_size,
            folds=folds,
            fold=fold,
            repeat=repeat,
            seed=seed,
        )
        self._row_mixing: RowMixing | None = None
        # The model saves it too, perhaps with another value, and Lightning refuses two values of one name.
        save_plain_hyperparameters(self, ignore=["task"])
        self._read(table if self.path is None else self.path, targets, task)

    def _read(self, source: Any, targets: list[str], task: str) -> None:
        """Reads, splits and measures the table: the inputs' width depends on the categories of the training rows."""
        names: tuple[str, ...] = ()
        if self.dataset is not None:
            self._table, names = named_table(self.dataset)
        else:
            splitters = {"group_column": self.group_column, "time_column": self.time_column}
            self._table = read_table(
                source,
                targets,
                ignore=self.ignore,
                as_category=self.as_category,
                splitters={setting: name for setting, name in splitters.items() if name is not None},
            )
        found = targets_of({name: self._table.columns[name] for name in self._table.targets}, task=task, names=names)
        self.task, self.classes, self._targets = found.task, found.classes, found.values
        self._rows = self._splitter.split(found, groups=self._groups(), times=self._times())
        self._encoder = TableEncoder.fitted(self._table, self._rows["train"], self.numeric)

    def _groups(self) -> Tensor | None:
        if self.group_column is None:
            return None
        _, groups = np.unique(self._table.columns[self.group_column].values, return_inverse=True)
        return torch.from_numpy(groups)

    def _times(self) -> Tensor | None:
        if self.time_column is None:
            return None
        column = self._table.columns[self.time_column]
        if not column.is_number:
            raise SettingError(
                f"time_column must be a column of dates in ISO 8601 or of numbers, but {self.time_column!r} is "
                f"{column.kind}, such as {column.written(0)!r}"
            )
        return torch.from_numpy(column.values)

    @property
    def num_targets(self) -> int | None:
        """Number of targets or labels per row; None for classification."""
        return None if self.task == "classification" else self._targets[0].numel()

    @property
    def input_shape(self) -> tuple[int]:
        """(D,) of one row."""
        encoder = self._encoder
        width = len(encoder.cardinalities) if self.categorical == "embed" else len(encoder.one_hot_kept)
        return (encoder.num_numbers + width,)

    @property
    def categories(self) -> tuple[int, ...]:
        """Number of codes of each of the last columns, which a network must embed; empty with one-hot."""
        return self._encoder.cardinalities if self.categorical == "embed" else ()

    @override
    def setup(self, stage: str) -> None:
        if not self._splits:
            self._encode()
            self._say_what_was_done()

    def _encode(self) -> None:
        tensors = (*self._encoder.encode(self._table), self._targets)
        self._kept = torch.tensor(self._encoder.one_hot_kept, dtype=torch.int64)
        for split, rows in self._rows.items():
            self._splits[split] = SampleDataset(*tensors, indices=rows)

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        precision: Any = self.trainer.precision_plugin if self.trainer else None
        if isinstance(batch, Tensor):  # a model's example input, which Lightning sends through here too
            return precision.convert_input(batch) if precision else batch
        numbers, codes, targets = batch
        mixes = self._mixes()
        if not codes.shape[1]:
            inputs = numbers
        elif self.categorical == "one_hot" or mixes:
            blocks = one_hot_columns(codes, self._encoder.cardinalities)
            if self.categorical == "one_hot":
                self._kept = self._kept.to(blocks.device, non_blocking=True)
                blocks = blocks.index_select(1, self._kept)
            inputs = torch.cat([numbers, blocks], 1)
        else:
            inputs = torch.cat([numbers, codes.float()], 1)
        if mixes:
            inputs, targets = self._mixed(inputs, targets)
        if precision is None:
            return inputs, targets
        # Half precision would round codes; the embedding converts the numbers to its weights' precision.
        keeps = self.categorical == "embed" and codes.shape[1] > 0
        return inputs if keeps else precision.convert_input(inputs), precision.convert_input(targets)

    @override
    def _fitted(self, mix: Mixing) -> Mixing:
        """Returns a mixing whose columns are those of the table, however many inputs encode each."""
        if not isinstance(mix, RowMixing):
            return mix
        if self._row_mixing is None:
            kept = self._encoder.one_hot_kept if self.categorical == "one_hot" else None
            numbers = self._splits["train"].tensors[0][self._rows["train"]].mean(0)
            self._row_mixing = mix.of_table(self._encoder.origins(kept), self._encoder.blanks(numbers, kept))
        return self._row_mixing

    @override
    def sample_names(self, split: Literal["train", "val", "test"]) -> list[str]:
        """Returns the index of each row of a split in the table, in the order of its evaluation loader.

        Args:
            split: train, val or test.
        """
        return [str(row) for row in self._rows[split].tolist()]

    @override
    def _without(self, split: str) -> str:
        return f"{split}_size must not be None where there is something to {split}"

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "classes": list(self.classes),
            "split": self._split_settings(),
            "settings": self._encoding_settings(),
            "encoder": self._encoder.state_dict(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("task", self.task) != self.task:  # checkpoints of earlier versions don't say it
            raise SettingError(f"task must be {state_dict['task']}, as in the checkpoint, but is {self.task}")
        if state_dict["classes"] != list(self.classes):
            raise SettingError(
                f"the table must have the checkpoint's classes, {', '.join(state_dict['classes'][:10]) or 'none'}, but "
                f"has {', '.join(self.classes[:10]) or 'none'}"
            )
        for name, value in self._encoding_settings().items():
            if state_dict["settings"][name] != value:
                raise SettingError(
                    f"{name} must be {state_dict['settings'][name]}, as in the checkpoint, but is {value}"
                )
        self._warn_of_another_split(state_dict["split"], self._split_settings())
        # A model keeps the constants that it was trained with, whatever the data are now.
        self._encoder = TableEncoder.from_state_dict(state_dict["encoder"])
        self._encode()
        self._say(f"{self._table.origin} is encoded by the constants of the checkpoint")

    def _split_settings(self) -> dict[str, Any]:
        return {
            "table": self.dataset or (self._table.origin if self.path is None else str(self.path)),
            "group_column": self.group_column,
            "time_column": self.time_column,
            **self._splitter.settings,
        }

    def _encoding_settings(self) -> dict[str, Any]:
        return {"numeric": self.numeric, "categorical": self.categorical}

    def _say_what_was_done(self) -> None:
        table, encoder, rows = self._table, self._encoder, self._rows["train"]
        kinds = [column.kind for column in table.inputs.values()]
        words = {"number": "numbers", "boolean": "truth values", "date": "dates", "text": "categories"}
        counts = [f"{kinds.count(kind)} of {words[kind]}" for kind in words if kind in kinds]
        task = {
            "classification": f"classification of {{}}, {len(self.classes)} classes",
            "regression": "regression of {}",
            "multilabel": "labels {}, any number of them a row",
        }[self.task].format(", ".join(map(repr, table.targets)))
        self._say(
            f"{table.origin}: {len(table)} rows, {len(rows)} of them for training; columns: {', '.join(counts)}; {task}"
        )
        for note in table.notes:
            self._say(note)
        for name in encoder.gaps:
            count = int(table.columns[name].missing[rows.numpy()].sum())
            if name in encoder.numbers:
                median = float(encoder.medians[encoder.numbers.index(name)])
                remedy = f"they become {median:g}, the median, and a column says where"
            else:
                remedy = "they are a category of their own"
            self._say(f"{name!r} has {count} missing values in the training rows: {remedy}")
        for name, texts in encoder.vocabularies.items():
            if len(texts) > len(rows) / 2:
                rank_zero_warn(
                    f"Column {name!r} has {len(texts)} different texts in {len(rows)} training rows, too many to learn "
                    f"from as categories; leave it out with ignore: [{name}]"
                )


def _check_source(
    dataset: str | None, path: str | Path | None, table: Any, targets: Sequence[str], others: Sequence[str | None]
) -> None:
    """Raises unless there is exactly one table, and the columns of an unknown one are named."""
    given = {"dataset": dataset, "path": path, "table": table}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1:
        shown = " and ".join("a table" if name == "table" else str(value) for name, value in given.items())
        problem = f"{len(given)} are: {shown}" if given else "none is"
        raise SettingError(f"one of dataset ({', '.join(NAMED_TABLES)}), path and table must be given, but {problem}")
    if dataset is not None:
        check_choice("dataset", dataset, NAMED_TABLES)
        if targets or any(others):
            raise SettingError(
                "target, ignore, as_category, group_column and time_column must be left out for "
                f"{dataset}, whose columns are known"
            )
    elif not targets:
        origin = path if path is not None else "the table"
        raise SettingError(f"target must name the column of {origin} to predict, but is left out")
