"""Whole columns of a table, mixed and blanked, as the table had them before categories were encoded."""

import math
from random import Random

import pytest
import torch

from lightning_reg.callbacks import BatchMixing
from lightning_reg.functional.batch.rows import drawn_columns
from lightning_reg.settings import SettingError
from lightning_reg.transforms import RowCutMix, RowCutout
from tests.conformance.problem import SomebodysModule, loader
from tests.helpers import quiet_trainer

ORIGINS = (0, 1, 2, 1, 3, 3, 3)  # column 1 has an indicator, column 3 a block of three


def distinct_rows(count=6, width=7):
    return torch.arange(1.0, count * width + 1).view(count, width)


@pytest.mark.parametrize("per_sample", [False, True])
def test_cutmix_moves_whole_columns_and_the_label_follows_their_share(per_sample):
    rows, targets, shares = distinct_rows(), torch.eye(6), set()
    before = rows.clone()
    mix = RowCutMix(alpha=1.0, per_sample=per_sample, origins=ORIGINS)
    for seed in range(30):
        mixed, soft = mix(rows, targets, stream=Random(seed))
        for i in range(6):
            taken = [column for column in range(7) if mixed[i, column] == rows[i - 1, column]]
            assert all(mixed[i, column] == rows[i, column] for column in range(7) if column not in taken)
            columns = {ORIGINS[column] for column in taken}
            assert taken == [column for column in range(7) if ORIGINS[column] in columns]
            assert len(columns) <= 2  # of four: the row's own label stays the dominant one
            assert soft[i, i] == 1 - len(columns) / 4
            assert soft[i, i - 1] == len(columns) / 4
            shares.add(len(columns))
    assert shares == {0, 1, 2}
    assert rows.equal(before)


def test_the_share_of_columns_is_that_of_the_papers_beta():
    """⌈(1 - λ)F⌉ of F = 10 columns with a uniform λ: each count from 1 to 10 once in ten."""
    mix, rows = RowCutMix(alpha=1.0), torch.zeros(2, 10)
    draws = 2000
    counts = torch.tensor(
        [round(float(mix.draw(rows, stream=Random(seed)).minor_weight) * 10) for seed in range(draws)]
    )
    found = torch.bincount(counts, minlength=6) / draws
    expected = torch.tensor([0.1, 0.2, 0.2, 0.2, 0.2, 0.1])  # 10 is 0, 9 is 1, and so on
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / draws).sqrt()).all()


def test_every_set_of_columns_is_as_likely():
    sets = drawn_columns(torch.full((6000,), 2), 4, generator=torch.Generator().manual_seed(0))
    codes = (sets * torch.tensor([1, 2, 4, 8])).sum(1)
    counts = torch.bincount(codes, minlength=16)[[3, 5, 6, 9, 10, 12]]
    assert counts.sum() == 6000
    assert ((counts - 1000).abs() < 4 * math.sqrt(6000 / 6 * 5 / 6)).all()


def test_cutout_blanks_as_many_columns_of_every_row_and_keeps_targets():
    rows, targets = distinct_rows(), torch.eye(6)
    mixed, same = RowCutout(ratio=0.5, value=-1.0, origins=ORIGINS)(rows, targets, stream=Random(0))
    assert same is targets
    for own, row in zip(rows, mixed, strict=True):
        blanked = {ORIGINS[column] for column in range(7) if row[column] == -1}
        assert len(blanked) == 2
        assert all((row[column] == -1) == (ORIGINS[column] in blanked) for column in range(7))
        assert all(row[column] in (-1, own[column]) for column in range(7))
    assert len({tuple((row == -1).tolist()) for row in mixed}) > 1  # every row has a set of its own


@pytest.mark.parametrize(("ratio", "columns"), [(0.7, 7), (0.0, 0), (0.01, 1), (1.0, 10)])
def test_cutouts_ratio_is_rounded_up(ratio, columns):
    mixed, _ = RowCutout(ratio=ratio)(torch.ones(3, 10), torch.zeros(3), stream=Random(0))
    assert (mixed == 0).sum(1).tolist() == [columns] * 3


def test_some_rows_are_left_alone():
    mixed, _ = RowCutout(ratio=0.5, prob=0.3)(torch.ones(2000, 4), torch.zeros(2000), stream=Random(0))
    share = (mixed == 0).any(1).float().mean()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)
    for nothing in (RowCutMix(prob=0.0), RowCutMix(alpha=0.0), RowCutout(ratio=0.0)):
        assert nothing.draw(torch.ones(4, 4), stream=Random(0)) is None


def test_mixes_somebody_elses_table():
    trainer = quiet_trainer(BatchMixing(RowCutMix(alpha=1.0, origins=(0, 0, 1, 2, 3, 4)), seed=3))
    trainer.fit(SomebodysModule(), loader(), loader())
    assert trainer.callback_metrics["train_loss"].isfinite()


@pytest.mark.parametrize(
    ("mix", "shape", "message"),
    [
        (RowCutMix(), (4, 1, 8, 8), r"inputs must be rows of a table \(N, D\) for RowCutMix, .* \(4, 1, 8, 8\)"),
        (RowCutout(), (4,), r"inputs must be rows of a table \(N, D\) for RowCutout"),
        (RowCutMix(origins=(0, 1)), (4, 3), "each of the 3 input columns, but has 2 entries"),
    ],
)
def test_what_is_no_such_table_is_refused(mix, shape, message):
    with pytest.raises(SettingError, match=message):
        mix(torch.zeros(shape), torch.zeros(4), stream=Random(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RowCutMix(alpha=-1.0), r"alpha must be in \[0, ∞\), but is -1.0"),
        (lambda: RowCutout(ratio=1.5), r"ratio must be in \[0, 1\], but is 1.5"),
        (lambda: RowCutMix(origins=(0, 2)), r"without a gap, but are \[0, 2\]"),
        (lambda: RowCutMix(origins=5), "origins must be numbers of columns, but is 5"),
        (lambda: RowCutMix(prob=2.0), r"prob must be in \[0, 1\], but is 2.0"),
    ],
)
def test_bad_settings_are_refused_at_once(make, message):
    with pytest.raises(SettingError, match=message):
        make()
