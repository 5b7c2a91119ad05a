"""Encoding of a table's columns for a network, with constants of the training rows alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import Self

from lightning_reg.data.tables.columns import Column
from lightning_reg.data.tables.sources import Table
from lightning_reg.functional.preparation import normal_scores, quantile_knots
from lightning_reg.settings import SettingError

__all__ = ["Scaling", "TableEncoder"]

Scaling = Literal["standard", "quantile", "none"]


@dataclass(frozen=True)
class TableEncoder:
    """Encodes a table by constants of the training rows.

    Attributes:
        numbers: Names of the F columns of numbers.
        vocabularies: Sorted texts of the training rows, by text column. Code 0 stands for a missing or unknown text,
            code 1 for the first.
        gaps: Names of the columns with missing values in the training rows.
        medians: (F,), float64, values that replace missing numbers.
        mean: (F,), float64, mean of the training rows without missing values; 0 without scaling.
        std: (F,), likewise, population standard deviation; 1 for a column that is constant up to rounding.
        knots: (K, F), quantiles, for quantile scaling; else None.
    """

    numbers: tuple[str, ...]
    vocabularies: dict[str, tuple[str, ...]]
    gaps: tuple[str, ...]
    medians: Tensor
    mean: Tensor
    std: Tensor
    knots: Tensor | None = None

    @classmethod
    def fitted(cls, table: Table, rows: Tensor, scaling: Scaling) -> Self:
        """Returns an encoder fitted to the training rows.

        Args:
            table: The whole table; columns that aren't inputs are left out.
            rows: (M,), positions of the training rows.

        Raises:
            SettingError: If all values of a column are missing in these rows, or no column changes in them.
        """
        chosen = rows.numpy()
        inputs = table.inputs
        if all(_is_constant(column.values[chosen]) for column in inputs.values()):
            rounded = next(filter(None, (column.note_on_rounding for column in inputs.values())), "")
            raise SettingError(
                f"{table.origin} must have a column to learn from, but {', '.join(map(repr, inputs))} never "
                f"change{'s' if len(inputs) == 1 else ''} in the {len(rows)} training rows{rounded}"
            )
        missing = {name: column.missing[chosen] for name, column in inputs.items()}
        for name, gaps in missing.items():
            if gaps.all():
                raise SettingError(
                    f"column {name!r} of {table.origin} must have values in the training rows, but all {len(rows)} "
                    f"are missing; leave it out with ignore: [{name}]"
                )
        numbers = tuple(name for name, column in inputs.items() if column.is_number)
        # One column after the other, so that there is never a second table of numbers in memory.
        medians, means, stds, knots = [], [], [], []
        for name in numbers:
            values = inputs[name].values[chosen]
            present = values[~np.isnan(values)]
            medians.append(np.median(present))  # of an even number of values the mean of the middle two
            means.append(0.0 if scaling == "none" else present.mean())
            stds.append(1.0 if scaling == "none" else _deviation(present))
            if scaling == "quantile":
                knots.append(quantile_knots(torch.from_numpy(values).unsqueeze(1)))
        return cls(
            numbers=numbers,
            vocabularies={
                name: tuple(column.texts[code] for code in np.unique(column.values[chosen]) if code >= 0)
                for name, column in inputs.items()
                if not column.is_number
            },
            gaps=tuple(name for name, gaps in missing.items() if gaps.any()),
            medians=torch.tensor(medians, dtype=torch.float64),
            mean=torch.tensor(means, dtype=torch.float64),
            std=torch.tensor(stds, dtype=torch.float64),
            knots=torch.cat(knots, 1) if knots else None,
        )

    @property
    def indicators(self) -> tuple[str, ...]:
        """Columns of numbers with an extra input that says where they are missing."""
        return tuple(name for name in self.numbers if name in self.gaps)

    @property
    def num_numbers(self) -> int:
        """Number of inputs that are numbers or indicators of missing ones."""
        return len(self.numbers) + len(self.indicators)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each text column, code 0 included."""
        return tuple(len(texts) + 1 for texts in self.vocabularies.values())

    @property
    def one_hot_kept(self) -> list[int]:
        """Columns of the one-hot blocks that can be 1 in training rows.

        Code 0 is left out where no text is missing: an unknown text is then all zeros, which is neutral, whereas a
        weight that was never trained isn't.
        """
        kept: list[int] = []
        start = 0
        for (name, _), size in zip(self.vocabularies.items(), self.cardinalities, strict=True):
            kept += range(start + (name not in self.gaps), start + size)
            start += size
        return kept

    def origins(self, kept: list[int] | None) -> list[int]:
        """Returns the index of the table column behind each input column, numbers first, then texts.

        Args:
            kept: Columns of the one-hot blocks that are inputs; None for all.
        """
        blocks = [len(self.numbers) + position for position, size in enumerate(self.cardinalities) for _ in range(size)]
        indicators = [self.numbers.index(name) for name in self.indicators]
        return [*range(len(self.numbers)), *indicators, *(blocks if kept is None else [blocks[at] for at in kept])]

    def blanks(self, numbers: Tensor, kept: list[int] | None) -> Tensor:
        """Returns a neutral value for each input column: a mean that isn't missing, and a missing text.

        Args:
            numbers: (F + indicators,), means of the training rows.
            kept: Columns of the one-hot blocks that are inputs; None for all.
        """
        present = torch.zeros(len(self.indicators))
        block = torch.cat([torch.eye(size)[0] for size in self.cardinalities] or [torch.zeros(0)])
        return torch.cat([numbers[: len(self.numbers)], present, block if kept is None else block[kept]])

    def encode(self, table: Table) -> tuple[Tensor, Tensor]:
        """Returns numbers (N, F + indicators), float32, and codes (N, K), int64.

        Args:
            table: Table with the columns that the encoder was fitted to.

        Raises:
            SettingError: If a column is missing or of another kind.
        """
        for name in (*self.numbers, *self.vocabularies):
            column = table.columns.get(name)
            if column is None or column.is_number != (name in self.numbers):
                wanted = "numbers" if name in self.numbers else "text"
                raise SettingError(
                    f"{table.origin} must have a column {name!r} of {wanted}, as the checkpoint's table has, but it "
                    f"{'is absent' if column is None else f'is {column.kind}'}"
                )
        encoded = torch.empty(len(table), self.num_numbers)
        for position, name in enumerate(self.numbers):
            values = torch.from_numpy(table.columns[name].values)
            absent = values.isnan()
            values = torch.where(absent, self.medians[position], values)
            if self.knots is None:
                values.sub_(self.mean[position]).div_(self.std[position])
            else:
                values = normal_scores(values.unsqueeze(1), self.knots[:, position : position + 1]).squeeze(1)
            encoded[:, position] = values
            if name in self.indicators:
                encoded[:, len(self.numbers) + self.indicators.index(name)] = absent.float()
        codes = torch.empty(len(table), len(self.vocabularies), dtype=torch.int64)
        for position, (name, texts) in enumerate(self.vocabularies.items()):
            codes[:, position] = _codes(table.columns[name], texts)
        return encoded, codes

    def state_dict(self) -> dict[str, Any]:
        """Returns the constants as plain values."""
        return {
            "numbers": list(self.numbers),
            "vocabularies": {name: list(texts) for name, texts in self.vocabularies.items()},
            "gaps": list(self.gaps),
            "medians": self.medians,
            "mean": self.mean,
            "std": self.std,
            "knots": self.knots,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        """Returns the encoder of a saved state.

        Args:
            state: Result of :meth:`state_dict`.
        """
        return cls(
            numbers=tuple(state["numbers"]),
            vocabularies={name: tuple(texts) for name, texts in state["vocabularies"].items()},
            gaps=tuple(state["gaps"]),
            **{name: state[name] for name in ("medians", "mean", "std", "knots")},
        )


def _is_constant(values: npt.NDArray[Any]) -> bool:
    first = values[0]
    return bool(np.isnan(values).all() if np.isnan(first) else (values == first).all())


def _deviation(values: npt.NDArray[np.float64]) -> float:
    """Returns the population standard deviation; 1 where it is no more than rounding errors of a constant."""
    mean, variance = float(values.mean()), float(values.var())
    eps = float(np.finfo(np.float64).eps)
    # The bound of the error of a variance in two passes (Chan, Golub, LeVeque 1983), as scikit-learn's scaler has it.
    if variance <= len(values) * eps * variance + (len(values) * mean * eps) ** 2:
        return 1.0
    return math.sqrt(variance)


def _codes(column: Column, texts: tuple[str, ...]) -> Tensor:
    code = {text: position for position, text in enumerate(texts, 1)}
    # Indexed by the table's code of a text; -1, which stands for a missing one, is the last entry.
    codes = torch.tensor([*(code.get(text, 0) for text in column.texts), 0])
    return codes[torch.from_numpy(column.values)]
