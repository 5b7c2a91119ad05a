"""Folds, repeats, groups and times: which rows of a table are held out."""

import itertools

import numpy as np
import pandas
import pytest
import torch

from lightning_reg.data import TabularData
from lightning_reg.data.row_splits import _of_rows
from lightning_reg.data.targets import Targets
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup

ROWS = 240


def frame(**columns):
    random = np.random.default_rng(0)
    days = pandas.Timestamp("2020-01-01") + pandas.to_timedelta(random.permutation(ROWS) // 2, unit="D")
    return pandas.DataFrame(
        {
            "x": random.normal(size=ROWS),
            "patient": [f"p{number}" for number in random.integers(0, 40, ROWS)],
            "day": days,
            "kind": random.choice(["a", "b", "c"], ROWS, p=[0.5, 0.3, 0.2]),
            "size": random.exponential(size=ROWS),
            "red": random.random(ROWS) < 0.5,
            "round": random.random(ROWS) < 0.3,
            **columns,
        }
    )


def data_of(target="kind", table=None, **settings):
    others = {"patient", "day", "kind", "size", "red", "round"} - {
        *([target] if isinstance(target, str) else target),
        settings.get("group_column"),
        settings.get("time_column"),
    }
    return TabularData(table=frame() if table is None else table, target=target, ignore=sorted(others), **settings)


def parts_of(data):
    return {name: set(rows.tolist()) for name, rows in data._rows.items()}


def assert_a_partition(data):
    parts = parts_of(data)
    assert all(parts.values())
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) <= ROWS


@pytest.mark.parametrize("target", ["kind", "size", ["red", "round"], ["x", "size"]])
@pytest.mark.parametrize("test_size", [0.2, None])
def test_every_row_is_held_out_in_one_fold_and_folds_are_alike(target, test_size):
    held = []
    table = frame(z=range(ROWS))
    for fold in range(5):
        data = data_of(target, table, folds=5, fold=fold, test_size=test_size)
        assert_a_partition(data)
        assert ("test" in data._rows) == (test_size is not None)
        held.append(data._rows["val" if test_size is None else "test"])
    assert torch.cat(held).sort().values.tolist() == list(range(ROWS))
    values = data._targets if data._targets.ndim == 1 else data._targets @ torch.tensor([1.0, 2.0])
    if target == "kind":
        counts = torch.stack([torch.bincount(values[rows], minlength=3) for rows in held])
        assert (counts.max(0).values - counts.min(0).values).max() <= 1
    elif target == "size":
        means = torch.stack([values[rows].mean() for rows in held])
        # Ten strata of 24 rows leave a fold 4 or 5 of each: far less than chance would move the mean of 48 rows.
        assert means.std() < values.std() / 48**0.5
    elif target == ["red", "round"]:
        shares = torch.stack([data._targets[rows].mean(0) for rows in held])
        assert (shares.max(0).values - shares.min(0).values).max() < 0.15


def test_repeats_are_other_splits_and_seeds_are_not():
    plain, other, seeded = data_of(), data_of(repeat=1), data_of(seed=1)
    assert torch.equal(plain._rows["test"], seeded._rows["test"])
    assert not torch.equal(plain._rows["test"], other._rows["test"])
    first, second = (data_of(folds=4, fold=1, repeat=repeat) for repeat in (0, 1))
    assert not torch.equal(first._rows["test"], second._rows["test"])
    assert torch.equal(first._rows["test"], data_of(folds=4, fold=1, seed=3)._rows["test"])


@pytest.mark.parametrize("target", ["kind", "size"])
@pytest.mark.parametrize(
    "settings", [{}, {"folds": 4, "fold": 2}, {"val_size": 0.3, "test_size": 0.4, "train_size": 30}]
)
def test_no_group_is_on_both_sides(target, settings):
    table = frame()
    data = data_of(target, table, group_column="patient", **settings)
    assert_a_partition(data)
    assert data.input_shape == (1,)  # the group is no input
    groups = [{table["patient"][row] for row in rows} for rows in parts_of(data).values()]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(groups, 2))
    if not settings:
        assert abs(len(data._rows["test"]) / ROWS - 0.2) < 0.08
        assert abs(len(data._rows["val"]) / (ROWS - len(data._rows["test"])) - 0.1) < 0.08


def test_group_folds_hold_every_row_out_once():
    held = [data_of(group_column="patient", folds=5, fold=fold)._rows["test"] for fold in range(5)]
    assert torch.cat(held).sort().values.tolist() == list(range(ROWS))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("sizes", "test", "val"),
    [
        ([200] + [4] * 25, 60, 24),  # a fifth of 300, a tenth of 240
        ([4] * 25 + [200], 60, 24),
        ([100] + [10] * 10, 40, 20),  # a tenth of 160 is 16
        ([50, 30, 10, 10], 20, 30),  # the other two groups are 80 rows: of 50 and 30, 30 is nearer to 8
    ],
)
def test_parts_of_whole_groups_are_as_near_to_their_sizes_as_groups_allow(sizes, test, val, seed):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    random = np.random.default_rng(seed)
    table = pandas.DataFrame({"x": random.normal(size=len(groups)), "group": groups, "y": random.random(len(groups))})
    data = TabularData(table=table, target="y", group_column="group", seed=seed, repeat=seed)
    # Groups are first joined to twentieths, which differ by a group.
    assert abs(len(data._rows["test"]) - test) <= min(sizes)
    assert abs(len(data._rows["val"]) - val) <= min(sizes)


@pytest.mark.parametrize("settings", [{}, {"train_size": 40}, *({"folds": 3, "fold": fold} for fold in range(3))])
def test_what_is_held_out_is_later(settings):
    table = frame()
    data = data_of("size", table, time_column="day", **settings)
    assert_a_partition(data)
    assert data.input_shape == (1,)
    days = [table["day"][sorted(parts_of(data)[part])] for part in ("train", "val", "test")]
    assert days[0].max() < days[1].min()
    assert days[1].max() < days[2].min()
    if settings.get("train_size"):
        assert len(days[0]) == 40
    if settings.get("fold") == 2 or not settings:
        assert days[2].max() == table["day"].max()


@pytest.mark.parametrize(
    ("rows_of_times", "settings", "sizes"),  # sizes of the parts for training, validation and testing
    [
        ([20] * 5, {}, (60, 20, 20)),
        ([25] * 4, {}, (50, 25, 25)),
        ([20] * 10, {"val_size": 0.05}, (140, 20, 40)),
        ([5] * 9 + [55], {}, (40, 5, 55)),
        ([58, 1, 1], {}, (58, 1, 1)),  # the first time is nearest to the size of the test part, and needed before it
        ([58, 2], {"test_size": None}, (58, 2, 0)),
        ([6] * 10, {"folds": 3}, (6, 6, 18)),  # of 12 or 18 rows, 12 are nearest to a quarter of 60
        ([6] * 10, {"folds": 3, "fold": 2}, (36, 6, 18)),
        ([50, 1, 1, 1, 1], {"folds": 3, "fold": 0}, (50, 1, 1)),
        ([50, 1, 1, 1, 1], {"folds": 3, "fold": 1}, (50, 2, 1)),
        ([50, 1, 1, 1, 1], {"folds": 3, "fold": 2}, (50, 3, 1)),
        ([1, 1, 1, 50], {"folds": 3, "fold": 2, "test_size": None}, (3, 50, 0)),
    ],
)
def test_few_times_of_many_rows_are_split_as_nearly_as_they_allow(rows_of_times, settings, sizes):
    times = np.repeat(np.arange(len(rows_of_times)), rows_of_times)
    random = np.random.default_rng(0)
    table = pandas.DataFrame({"x": random.normal(size=len(times)), "year": times, "y": random.random(len(times))})
    data = TabularData(table=table, target="y", time_column="year", **settings)
    assert tuple(len(data._rows.get(part, ())) for part in ("train", "val", "test")) == sizes


@pytest.mark.parametrize(
    ("rows_of_times", "settings", "message"),
    [
        ([30, 30], {"folds": 3}, "each part, here 5, but has 2 among 60 rows"),
        ([58, 1, 1], {"folds": 3}, "each part, here 5, but has 3 among 60 rows"),
        ([58, 1, 1], {"folds": 3, "test_size": None}, "each part, here 4, but has 3 among 60 rows"),
        ([30, 30], {}, "each part, here 3, but has 2 among 60 rows"),
    ],
)
def test_too_few_times_are_told(rows_of_times, settings, message):
    times = np.repeat(np.arange(len(rows_of_times)), rows_of_times)
    table = pandas.DataFrame({"x": np.arange(len(times)) % 7, "year": times, "y": np.arange(len(times)) / 9})
    with pytest.raises(SettingError, match=f"time_column must have enough different times for {message}"):
        TabularData(table=table, target="y", time_column="year", **settings)


def test_checkpoint_of_another_fold_is_warned_of():
    state = data_of(folds=4).state_dict()
    with pytest.warns(UserWarning, match="trained with fold 0, not 1"):
        data_of(folds=4, fold=1).load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 1}, "folds must be a whole number of at least 2, but is 1"),
        ({"folds": 4, "fold": 4}, r"fold must be in \[0, 3\] for 4 folds, but is 4"),
        ({"fold": 1}, "folds must say how many there are where fold is given, but fold is 1"),
        ({"folds": 100}, "folds must be at most 4., the samples of class 'c', but is 100"),
        ({"target": "size", "folds": 500}, "folds must be at most 240, the number of rows, but is 500"),
        ({"repeat": -1}, "repeat must be a whole number of at least 0"),
        ({"group_column": "day", "time_column": "day"}, "group_column and time_column must not both be given"),
        (
            {"group_column": "patients"},
            "group_column must be a column of .*, but is 'patients'; did you mean 'patient'",
        ),
        ({"group_column": "kind"}, "group_column must not name a column that target names, too, but is 'kind'"),
        ({"time_column": "patient"}, "time_column must be a column of dates .* but 'patient' is text, such as 'p"),
        ({"time_column": "day", "repeat": 1}, "repeat must be 0 where time_column splits rows"),
        ({"group_column": "patient", "folds": 41}, "group_column must have at least 41 groups for folds, but has 40"),
    ],
)
def test_bad_settings_are_one_sentence(settings, message):
    with pytest.raises(SettingError, match=message) as error:
        data_of(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (
            {"kind": ["a"] * 200 + ["b"] * 40, "day": range(ROWS)},
            {"time_column": "day"},
            "training rows must have every",
        ),
        (
            {"kind": ["a", "b"] * 60 + ["a"] * 120, "day": range(ROWS)},
            {"time_column": "day"},
            "the test rows must have several classes, but all 48 are of 'a'; choose another",
        ),
        (
            {"kind": ["a"] * 120 + ["b"] * 120, "patient": ["p"] * 120 + ["q"] * 120},
            {"group_column": "patient"},
            "training rows must have every class|group_column must have at least 2 groups",
        ),
        ({"patient": [None] * 2 + ["p", "q"] * 119}, {"group_column": "patient"}, "column 'patient' must be known in"),
        ({"day": [3] * ROWS}, {"time_column": "day"}, "column 'day' must have different values, but is 3 in all 240"),
        ({"day": [1] * 120 + [2] * 120}, {"time_column": "day"}, "time_column must have enough different times"),
        (
            {"red": [True] * 239 + [False]},
            {"target": ["red", "round"], "time_column": "day"},
            "target 'red' must be 0 in some training rows and 1 in others, but is 1 in all",
        ),
    ],
)
def test_tables_that_cannot_be_split_are_one_sentence(columns, settings, message):
    table = frame(**columns)
    if settings.get("target"):
        table = table.sort_values("day", ignore_index=True).assign(red=columns["red"])
    with pytest.raises(SettingError, match=message) as error:
        data_of(table=table, **settings)
    assert "\n" not in str(error.value)


def test_tasks_are_told_before_setup():
    table = frame()
    for target, task, classes, targets in (
        ("kind", "classification", 3, None),
        ("size", "regression", None, 1),
        (["x", "size"], "regression", None, 2),
        (["red", "round"], "multilabel", 2, 2),
    ):
        data = data_of(target, table.assign(z=range(ROWS)))
        assert (data.task, data.num_classes, data.num_targets) == (task, classes, targets)
    assert data.classes == ("red", "round")
    data.setup("fit")
    _, labels = data.on_after_batch_transfer(next(iter(data.evaluation_dataloader("train"))), 0)
    expected = table[["red", "round"]].to_numpy()[data._rows["train"].tolist()][: len(labels)]
    assert labels.dtype == torch.float32
    assert labels.bool().tolist() == expected.tolist()
    assert data_of(["red", "round"], table, task="regression").num_classes is None


def test_labels_of_several_are_mixed_as_they_are():
    from tests.data.test_tabular_data import fitted

    data = data_of(["red", "round"], mix=Mixup(alpha=1.0), batch_size=64)
    _, mixed = fitted(data, limit_val_batches=0).batches[0]
    plain = fitted(data_of(["red", "round"], batch_size=64), limit_val_batches=0).batches[0][1]
    weight = ((mixed - plain) / (plain.roll(1, 0) - plain)).nanmedian()
    torch.testing.assert_close(mixed, torch.lerp(plain, plain.roll(1, 0), weight), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": ["red", "red"]}, "target must name different columns, but names 'red' several times"),
        ({"target": ["red", "kind"]}, "target must name columns of numbers, .* but 'kind' is text"),
        ({"target": ["red", "size"], "task": "multilabel"}, "target 'size' must be 0 or 1 in every row where task"),
        ({"target": "red", "task": "multilabel"}, "target must name several columns where task is multilabel"),
        ({"target": ["red", "round"], "task": "classification"}, "task must be multilabel or regression for several"),
        ({"target": ["red", "color"]}, "target must be a column of .*, but is 'color'"),
        ({"target": []}, "target must name the column of the table to predict, but is left out"),
    ],
)
def test_bad_targets_are_one_sentence(settings, message):
    with pytest.raises(SettingError, match=message) as error:
        TabularData(table=frame(), **settings)
    assert "\n" not in str(error.value)


def test_text_that_hardly_repeats_fits_no_task():
    table = pandas.DataFrame({"x": range(1000), "name": [f"name {row % 900}" for row in range(1000)]})
    with pytest.raises(
        SettingError, match="target 'name' must have values that repeat, or numbers, but is text with 900"
    ):
        TabularData(table=table, target="name")


@pytest.mark.parametrize("keeps_rest", [True, False])
def test_name_of_a_size_is_for_messages_alone(keeps_rest):
    """Whether the other rows are used decides whether they need every class; what the size is called doesn't."""
    targets = Targets("classification", ("many", "one"), torch.tensor([0] * 9 + [1]))
    settings = {"folds": 0, "seed": 0, "keeps_rest": keeps_rest}

    def outcome(name):
        try:
            return _of_rows(targets, torch.arange(10), 9, name=name, **settings).tolist()
        except SettingError as error:
            return str(error).removeprefix(name)

    outcomes = [outcome(name) for name in ("train_size", "val_size", "data.train_size")]
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert isinstance(outcomes[0], str) == keeps_rest
