"""From a table's columns to what a network reads, with constants of the training rows alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_reg.data.columns import Column
from lightning_reg.data.tables import Table
from lightning_reg.functional.statistics import normal_scores, quantile_knots
from lightning_reg.settings import SettingError

__all__ = ["Scaling", "TableEncoder"]

Scaling = Literal["standard", "quantile", "none"]


@dataclass(frozen=True)
class TableEncoder:
    """The constants that a table is encoded by.

    Attributes:
        numbers: Names of the columns of numbers: F of them.
        vocabularies: For each column of text the texts that the training rows have, sorted. Code 0 is for a missing
            text and for one that isn't among them, code 1 for the first.
        gaps: Names of the columns with missing values in the training rows.
        medians: (F,), what takes the place of a missing number.
        mean: (F,), of the training rows, float64; of those values that are there.
        std: (F,), likewise, of the population; 1 where a column never changes.
        knots: (K, F), quantiles, where they are what numbers are scaled by.
    """

    numbers: tuple[str, ...]
    vocabularies: dict[str, tuple[str, ...]]
    gaps: tuple[str, ...]
    medians: Tensor
    mean: Tensor
    std: Tensor
    knots: Tensor | None = None

    @classmethod
    def fitted(cls, table: Table, rows: Tensor, scaling: Scaling) -> "TableEncoder":
        """Returns the constants of some rows.

        Args:
            table: All of it; the target's column is left out.
            rows: (M,), positions of the training rows.
            scaling: How numbers are scaled.

        Raises:
            SettingError: If all values of a column are missing in these rows.
        """
        chosen = rows.numpy()
        inputs = {name: column for name, column in table.columns.items() if name != table.target}
        missing = {name: column.missing[chosen] for name, column in inputs.items()}
        for name, gaps in missing.items():
            if gaps.all():
                raise SettingError(
                    f"column {name!r} of {table.origin} must have values in the training rows, but all {len(rows)} "
                    f"are missing; leave it out with ignore: [{name}]"
                )
        numbers = tuple(name for name, column in inputs.items() if column.is_number)
        values = _stacked(inputs, numbers, len(table))[rows]  # (M, F)
        mean = values.nanmean(0)
        std = (values - mean).square().nanmean(0).sqrt()
        if scaling == "none":
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        return cls(
            numbers=numbers,
            vocabularies={
                name: tuple(sorted({text for text in column.values[chosen] if text is not None}))
                for name, column in inputs.items()
                if not column.is_number
            },
            gaps=tuple(name for name, gaps in missing.items() if gaps.any()),
            # In numpy, where the median of an even number of values lies between the middle two.
            medians=torch.from_numpy(np.nanmedian(values.numpy(), axis=0)) if numbers else values.new_zeros(0),
            mean=mean,
            std=torch.where(std > 0, std, 1.0),
            knots=quantile_knots(values) if scaling == "quantile" and numbers else None,
        )

    @property
    def indicators(self) -> tuple[str, ...]:
        """Columns of numbers that have a column beside them which says where they were missing."""
        return tuple(name for name in self.numbers if name in self.gaps)

    @property
    def num_numbers(self) -> int:
        """Columns of numbers and indicators that a network reads."""
        return len(self.numbers) + len(self.indicators)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """How many codes each column of text has, code 0 included."""
        return tuple(len(texts) + 1 for texts in self.vocabularies.values())

    @property
    def one_hot_kept(self) -> list[int]:
        """Columns of the one-hot blocks that training rows can be in.

        Code 0 is left out where none is missing: a text that was never seen is all zeros there, which says nothing,
        where a weight that was never trained would.
        """
        kept: list[int] = []
        start = 0
        for (name, _), size in zip(self.vocabularies.items(), self.cardinalities, strict=True):
            kept += range(start + (name not in self.gaps), start + size)
            start += size
        return kept

    def encode(self, table: Table) -> tuple[Tensor, Tensor]:
        """Returns numbers (N, F + indicators), float32, and codes (N, K), int64.

        Args:
            table: With the columns that the encoder was fitted to.

        Raises:
            SettingError: If a column isn't there or is of another kind.
        """
        for name in (*self.numbers, *self.vocabularies):
            column = table.columns.get(name)
            if column is None or column.is_number != (name in self.numbers):
                wanted = "numbers" if name in self.numbers else "text"
                raise SettingError(
                    f"{table.origin} must have a column {name!r} of {wanted}, as the checkpoint's table has, but it "
                    f"{'is absent' if column is None else f'is {column.kind}'}"
                )
        values = _stacked(table.columns, self.numbers, len(table))
        absent = values.isnan()
        values = torch.where(absent, self.medians, values)
        scaled = (values - self.mean) / self.std if self.knots is None else normal_scores(values, self.knots)
        indicators = absent[:, [self.numbers.index(name) for name in self.indicators]]
        codes = [_codes(table.columns[name], texts) for name, texts in self.vocabularies.items()]
        return (
            torch.cat([scaled, indicators.to(scaled.dtype)], 1).float(),
            torch.stack(codes, 1) if codes else torch.zeros(len(table), 0, dtype=torch.int64),
        )

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
    def from_state_dict(cls, state: Mapping[str, Any]) -> "TableEncoder":
        """Returns the encoder that a state is of.

        Args:
            state: From :meth:`state_dict`.
        """
        return cls(
            numbers=tuple(state["numbers"]),
            vocabularies={name: tuple(texts) for name, texts in state["vocabularies"].items()},
            gaps=tuple(state["gaps"]),
            **{name: state[name] for name in ("medians", "mean", "std", "knots")},
        )


def _stacked(columns: Mapping[str, Column], names: tuple[str, ...], rows: int) -> Tensor:
    values = [torch.from_numpy(np.ascontiguousarray(columns[name].values)) for name in names]
    return torch.stack(values, 1) if values else torch.zeros(rows, 0, dtype=torch.float64)


def _codes(column: Column, texts: tuple[str, ...]) -> Tensor:
    code = {text: position for position, text in enumerate(texts, 1)}
    return torch.tensor([code.get(text, 0) for text in column.values], dtype=torch.int64)
