"""CutMix and cutout for tables: whole columns of a row."""

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import TypeVar

import torch
from torch import Tensor
from typing_extensions import Self, override

from lightning_reg.functional.batch.rows import blank_columns, drawn_columns, paste_columns_from_previous
from lightning_reg.settings import SettingError, check_count, check_flags, check_range
from lightning_reg.transforms.draws import generator_of
from lightning_reg.transforms.mixing import Draw, Mixing, on_device

__all__ = ["RowCutMix", "RowCutout", "RowMixing"]

R = TypeVar("R", bound="RowMixing")


class RowMixing(Mixing):
    """Mixes or blanks whole columns of a table, as they were before categories were encoded.

    Args:
        prob: Probability that a batch is mixed, or a row blanked, in [0, 1].
        origins: Index of the table's column behind each input column, from 0; None where each input
            column is one of the table's.
    """

    input_kind = "rows"

    def __init__(self, *, prob: float, origins: Sequence[int] | None) -> None:
        check_range("prob", prob, low=0, high=1)
        if origins is not None:
            if not isinstance(origins, Sequence):
                raise SettingError(f"origins must be numbers of columns, but is {origins!r}")
            for origin in origins:
                check_count("each of origins", origin, low=0)
            if sorted(set(origins)) != list(range(len(set(origins)))):
                raise SettingError(
                    f"origins must be numbers of columns from 0 on without a gap, but are {sorted(set(origins))}"
                )
        self.prob = prob
        self.origins = None if origins is None else tuple(origins)

    def of_table(self: R, origins: Sequence[int], blanks: Tensor) -> R:
        """Returns a copy for a table whose columns are encoded.

        Args:
            origins: As for the class; ignored where the user gave them.
            blanks: (D,), value of a blank in each input column.
        """
        bound = copy.copy(self)
        bound.origins = tuple(origins) if self.origins is None else self.origins
        return bound

    @override
    def draw(self, inputs: Tensor, *, stream: Random) -> Draw | None:
        if inputs.ndim != 2:
            raise SettingError(
                f"inputs must be rows of a table (N, D) for {type(self).__name__}, but have the shape "
                f"{tuple(inputs.shape)}"
            )
        if self.origins is not None and len(self.origins) != inputs.shape[1]:
            raise SettingError(
                f"origins must name the table's column of each of the {inputs.shape[1]} input columns, but has "
                f"{len(self.origins)} entries"
            )
        return self.draw_rows(inputs, inputs.shape[1] if self.origins is None else max(self.origins) + 1, stream)

    @abstractmethod
    def draw_rows(self, rows: Tensor, num_columns: int, stream: Random) -> Draw | None:
        """Makes the draw for one batch of rows.

        Args:
            rows: (N, D).
            num_columns: Number F of the table's columns.
            stream: Source of random numbers.
        """

    def encoded(self, columns: Tensor, rows: Tensor) -> Tensor:
        """Returns the input columns that encode chosen columns of the table.

        Args:
            columns: (..., F), bools, on the host.
            rows: Tensor that the device is taken from.

        Returns:
            (..., D), bools, on the rows' device.
        """
        if self.origins is not None:
            columns = columns[..., torch.tensor(self.origins)]
        return columns.to(rows.device, non_blocking=True)


class RowCutMix(RowMixing):
    """Takes some columns of every row from another row, and mixes their targets by the share of columns.

    Of F columns of the table, ⌈(1 − λ)F⌉ are drawn, λ from Beta(α, α). All input columns that encode a category move
    together, and so does the indicator of a missing number with the number. Targets are as for ``Mixup``.
    ``TabularData(mix=...)`` knows which columns these are; for ``BatchMixing``, set ``origins``.

    Args:
        alpha: Parameter α of the Beta distribution, at least 0. At 1 all shares are equally likely, toward 0 nearly all
            rows stay as they are, at 0 all.
        prob: Probability that a batch is mixed at all, in [0, 1].
        per_sample: Whether every row draws its own set of columns, rather than one for the whole batch.
        origins: Index of the table's column behind each input column, from 0; None where each input
            column is one of the table's.

    Raises:
        SettingError: If an argument is out of range; at the first batch, if inputs aren't rows, or ``origins`` has
            another length.

    Deviates from the paper: rows swap roles where more than half of the columns would come from the other, so that each
    row's own label stays the dominant one; columns are drawn before categories are encoded, not after.

    Reference:
        Arlind Kadra, Marius Lindauer, Frank Hutter, Josif Grabocka: Well-tuned Simple Nets Excel on Tabular Datasets,
        NeurIPS 2021, arXiv:2106.11189. Sangdoo Yun et al.: CutMix: Regularization Strategy to Train Strong Classifiers
        with Localizable Features, ICCV 2019, arXiv:1905.04899.

    >>> rows, targets = torch.arange(8.0).view(2, 4), torch.eye(2)
    >>> mixed, mixed_targets = RowCutMix(alpha=1.0)(rows, targets, stream=Random(0))
    >>> bool((mixed[0] != rows[0]).float().mean() == mixed_targets[0, 1])
    True
    """

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        prob: float = 1.0,
        per_sample: bool = False,
        origins: Sequence[int] | None = None,
    ) -> None:
        check_range("alpha", alpha, low=0)
        super().__init__(prob=prob, origins=origins)
        self.alpha = alpha
        self.per_sample = per_sample
        check_flags(self)

    @override
    def draw_rows(self, rows: Tensor, num_columns: int, stream: Random) -> Draw | None:
        if stream.random() >= self.prob or self.alpha == 0:
            return None
        stays = [stream.betavariate(self.alpha, self.alpha) for _ in range(len(rows) if self.per_sample else 1)]
        counts = [math.ceil((1 - share) * num_columns) for share in stays]
        counts = [min(count, num_columns - count) for count in counts]
        chosen = drawn_columns(torch.tensor(counts), num_columns, generator=generator_of(stream))
        columns = self.encoded(chosen, rows)
        minor = on_device([count / num_columns for count in counts], rows)
        if not self.per_sample:
            columns, minor = columns[0], minor[0]
        return Draw(partial(paste_columns_from_previous, columns=columns), minor)


class RowCutout(RowMixing):
    """Blanks some columns of every row; targets stay as they are.

    Every row draws ⌈ratio · F⌉ of the table's F columns. With ``TabularData(mix=...)`` numbers become the mean of the
    training rows, categories the one for missing texts, and indicators say that no number is missing. With
    ``BatchMixing`` blanks become ``value``.

    Args:
        ratio: Share of columns to blank, in [0, 1].
        prob: Probability that a row is blanked, in [0, 1].
        value: Value of a blank outside of ``TabularData``; 0 is the mean of standardized columns.
        origins: Index of the table's column behind each input column, as for ``RowCutMix``.

    Raises:
        SettingError: If an argument is out of range; at the first batch, if inputs aren't rows, or ``origins`` has
            another length.

    Reference:
        Arlind Kadra, Marius Lindauer, Frank Hutter, Josif Grabocka: Well-tuned Simple Nets Excel on Tabular Datasets,
        NeurIPS 2021, arXiv:2106.11189. Terrance DeVries, Graham W. Taylor: Improved Regularization of Convolutional
        Neural Networks with Cutout, 2017, arXiv:1708.04552.

    >>> rows, targets = torch.ones(2, 4), torch.eye(2)
    >>> RowCutout(ratio=0.5)(rows, targets, stream=Random(0))[0].sum(1)
    tensor([2., 2.])
    """

    needs_partner = False

    def __init__(
        self, *, ratio: float = 0.2, prob: float = 1.0, value: float = 0.0, origins: Sequence[int] | None = None
    ) -> None:
        check_range("ratio", ratio, low=0, high=1)
        check_range("value", value)
        super().__init__(prob=prob, origins=origins)
        self.ratio = ratio
        self.value = value
        self._blanks = torch.tensor(float(value))

    @override
    def of_table(self, origins: Sequence[int], blanks: Tensor) -> Self:
        bound = super().of_table(origins, blanks)
        bound._blanks = blanks
        return bound

    @override
    def draw_rows(self, rows: Tensor, num_columns: int, stream: Random) -> Draw | None:
        count = math.ceil(self.ratio * num_columns - 1e-9)  # 0.7 · 10 isn't 7 in floating point, but a little more
        counts = [count if stream.random() < self.prob else 0 for _ in range(len(rows))]
        if not any(counts):  # also where the ratio is 0
            return None
        chosen = drawn_columns(torch.tensor(counts), num_columns, generator=generator_of(stream))
        columns = self.encoded(chosen, rows)
        self._blanks = self._blanks.to(rows.device, non_blocking=True)
        return Draw(partial(blank_columns, columns=columns, values=self._blanks))
