"""Tables as people have them: other dialects and numbers, frames in memory, files that hold no table at all."""

import gzip
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import polars
import pyarrow
import pytest
import torch
from pyarrow import parquet

from lightning_reg.data import TabularData
from lightning_reg.settings import SettingError

ROWS = 60


def written(values, header="x", *, separator=",", path="table.csv"):
    lines = [
        separator.join([header, "label"]),
        *(f"{value}{separator}{'ab'[row % 2]}" for row, value in enumerate(values)),
    ]
    Path(path).write_text("\n".join(lines), encoding="utf-8")
    return path


def data_of(values, **settings):
    separator = settings.pop("separator", ";")
    return TabularData(path=written(values, separator=separator), target="label", numeric="none", **settings)


def in_order(data):
    """The inputs of all rows, in the table's order."""
    data.setup("fit")
    return data._splits["train"].tensors[0]


@pytest.mark.parametrize(
    ("spelled", "values"),
    [
        (["0,0", "0,5", "12", "-3,25"], [0, 0.5, 12, -3.25]),
        (["1.234,5", "12", "1.234.567", "0,125"], [1234.5, 12, 1234567, 0.125]),
        (["1,234.5", "12", "1,234,567", "999"], [1234.5, 12, 1234567, 999]),
        (["1 234", "12", "1 234 567", "5"], [1234, 12, 1234567, 5]),
        (["1'234.5", "12", "7", "5"], [1234.5, 12, 7, 5]),
        (["1\u202f234,5", "12", "7", "5"], [1234.5, 12, 7, 5]),
        ([" 1.5", "2 ", "+3", "4e2"], [1.5, 2, 3, 400]),
    ],
)
def test_numbers_however_they_are_written(spelled, values, caplog):
    data = data_of(spelled * 15)
    with caplog.at_level("INFO"):
        inputs = in_order(data)
    assert inputs[:, 0].tolist() == [np.float32(value) for value in values] * 15
    said = [record.message for record in caplog.records if "has numbers such as" in record.message]
    unusual = [text for text in spelled if any(mark in text.strip() for mark in (",", " ", "'", "\u202f"))]
    assert [f"numbers such as {text!r}, read as" in message for text in unusual[:1] for message in said] == [
        True for _ in unusual[:1]
    ]


@pytest.mark.parametrize("spelled", [["1,234", "5,678"], ["1,234", "17"]])
def test_number_that_may_mean_two_things_is_refused(spelled):
    with pytest.raises(SettingError, match=r"mean one thing, but has '1,234' in line 2, which is 1234 or 1\.234"):
        data_of(spelled * 20)


def test_slip_among_decimal_commas_is_named():
    with pytest.raises(SettingError, match="must be all numbers or all text, but has '0,5x' in line 42 and 40 numbers"):
        data_of(["0,5", "1,5"] * 20 + ["0,5x"])


@pytest.mark.parametrize("codes", [["007", "1234"], ["1_0", "2_0"], ["00", "01"], ["-01", "5"], ["1,2,3", "4,5,6"]])
def test_codes_that_a_number_would_change_are_categories(codes):
    data = data_of(codes * 30)
    assert data._encoder.vocabularies == {"x": tuple(sorted(codes))}


def test_text_far_down_is_found():
    with pytest.raises(SettingError, match="has 'seven' in line 30002 and 30000 numbers"):
        data_of(["1", "2", "3"] * 10000 + ["seven"])


def test_whole_numbers_of_64_bits_stay_apart_as_categories():
    codes = [2**53 + row % 3 for row in range(ROWS)]
    frame = pandas.DataFrame({"x": codes, "label": [row % 2 for row in range(ROWS)]})
    for settings in ({"table": frame}, {"path": written(codes)}):
        data = TabularData(**settings, target="label", as_category=["x"])
        assert data._encoder.vocabularies["x"] == tuple(str(2**53 + code) for code in range(3))


def test_dates_with_zones_are_instants():
    data = data_of(["2024-01-01T12:00:00+02:00", "2024-01-01T10:00:00Z", "2024-01-01 10:00", "2024-01-02 10:00"] * 15)
    day = (np.datetime64("2024-01-01T10:00") - np.datetime64("1970-01-01")) / np.timedelta64(1, "D")
    assert in_order(data)[:, 0].unique().tolist() == [np.float32(day), np.float32(day + 1)]


@pytest.mark.parametrize(
    ("header", "line", "names"),
    [
        ('id,"income (gross; yearly; EUR)",y', "{0},{1},{2}", ["id", "income (gross; yearly; EUR)"]),
        ('id, "income" , y', '{0}, "{1}", {2}', ["id", "income"]),
        ("id|income|y", "{0}|{1}|{2}", ["id", "income"]),
    ],
)
def test_dialects(header, line, names):
    lines = [line.format(row, row * 2, "ab"[row % 2]) for row in range(ROWS)]
    Path("table.csv").write_text("\n".join([header, *lines, ""]))
    data = TabularData(path="table.csv", target="y", numeric="none")
    assert list(data._encoder.numbers) == names
    assert in_order(data)[:, 1].tolist() == [row * 2 for row in range(ROWS)]


def test_quotes_far_down_and_lines_within_fields_and_packed_files():
    lines = [f"{row},a" for row in range(30000)] + ['"30000","b,\nb"']
    with gzip.open("table.csv.gz", "wt") as file:
        file.write("\n".join(["x,y", *lines * 2]))
    data = TabularData(path="table.csv.gz", target="x", numeric="none", task="regression")
    assert data._encoder.vocabularies == {"y": ("a", "b,\nb")}
    Path("table.csv").write_text("\n".join(["x,y", '1,"a\nb"', "2,c,d"]))
    with pytest.raises(SettingError, match=r"must have 2 fields in every line, as in the first, but line 4 has 3"):
        TabularData(path="table.csv", target="x")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_empty_lines_before_the_header(end):
    lines = ["", "", "x,y", *(f"{row},{'ab'[row % 2]}" for row in range(20))]
    Path("table.csv").write_bytes(end.join(lines).encode())
    data = TabularData(path="table.csv", target="y")
    data.setup("fit")
    assert (data.num_classes, data.input_shape) == (2, (1,))


def test_names_of_files_and_columns_are_no_patterns_and_no_sql():
    for name in ("a*b[0]?.csv", "it's.csv"):
        path = written(["1", "2"] * 30, "x\"'); DROP TABLE t; --", path=name)
        assert TabularData(path=path, target="label").input_shape == (1,)
    Path("year=2020").mkdir()
    path = written(["1", "2"] * 30, path="year=2020/table.csv")
    assert TabularData(path=path, target="label").input_shape == (1,)


@pytest.mark.parametrize("value", [0.1, 1.1, 14.62, 3.0, 1e9 + 0.1])
def test_column_that_never_changes_becomes_zero_and_others_keep_their_distance(value):
    tested = int(data_of([value, *range(ROWS - 1)])._rows["test"][0])
    values = [value + 1 if row == tested else value for row in range(ROWS)]
    frame = pandas.DataFrame({"x": values, "z": range(ROWS), "label": [row % 2 for row in range(ROWS)]})
    data = TabularData(table=frame, target="label")
    inputs = in_order(data)
    train, test = data._rows["train"], data._rows["test"]
    assert inputs[train, 0].abs().max() < 1e-6
    if tested in test.tolist():
        torch.testing.assert_close(inputs[tested, 0], torch.tensor(1.0), rtol=0, atol=1e-6)


def test_rounding_of_a_constant_is_no_spread():
    values = [0.1 + 0.2 if row % 2 else 0.3 for row in range(ROWS)]  # apart by one bit of float64
    frame = pandas.DataFrame({"x": values, "label": [row // 2 % 2 for row in range(ROWS)]})
    assert in_order(TabularData(table=frame, target="label")).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["pandas", "objects", "polars", "arrow", "parquet", "csv"])
@pytest.mark.parametrize("end", ["", "T06:30:00+02:00"])
def test_dates_as_text_are_dates_in_every_kind_of_table(kind, end, tmp_path):
    days = pandas.Timestamp("2024-01-01") + pandas.to_timedelta(np.arange(ROWS) * 7 % ROWS, unit="D")
    written_days = [f"{day:%Y-%m-%d}{end}" for day in days]
    written_days[5] = None
    frame = pandas.DataFrame({"day": written_days, "y": np.arange(ROWS) / 7, "time": days.strftime("%Y-%m-%d")})
    frame.to_parquet(tmp_path / "table.parquet")
    frame.to_csv(tmp_path / "table.csv", index=False)
    given = {
        "pandas": {"table": frame},
        "objects": {"table": frame.astype({"day": object, "time": object})},
        "polars": {"table": polars.from_pandas(frame)},
        "arrow": {"table": pyarrow.Table.from_pandas(frame)},
        "parquet": {"path": tmp_path / "table.parquet"},
        "csv": {"path": tmp_path / "table.csv"},
    }[kind]
    data = TabularData(**given, target="y", time_column="time", numeric="none")
    inputs = in_order(data)
    expected = (days - pandas.Timestamp(0)) / pandas.Timedelta(1, "D") + (4.5 / 24 if end else 0)
    known = np.arange(ROWS) != 5
    torch.testing.assert_close(inputs[known, 0], torch.tensor(expected.to_numpy()[known]).float())
    assert days[data._rows["train"].tolist()].max() < days[data._rows["val"].tolist()].min()
    data = TabularData(**given, target="y", as_category=["day"], ignore=["time"])
    assert data._encoder.vocabularies["day"]


def test_dates_in_a_frame_that_do_not_exist_are_told_with_their_row():
    frame = pandas.DataFrame({"day": ["2024-01-31"] * 3 + ["2024-02-30"] * 57, "y": range(ROWS)})
    with pytest.raises(SettingError, match="column 'day' must have dates that exist, but has '2024-02-30' in row 3"):
        TabularData(table=frame, target="y")


@pytest.mark.parametrize(
    ("values", "is_told"), [(["0.5", "1e-3", "7"], True), (["7", "12", "3"], False), (["true", "false", "0.5"], False)]
)
def test_numbers_that_a_frame_has_as_text_are_categories_and_told_if_they_are_fractions(values, is_told, caplog):
    frame = pandas.DataFrame({"x": values * (ROWS // 3), "y": range(ROWS)})
    with caplog.at_level("INFO"):
        data = TabularData(table=frame, target="y")
        data.setup("fit")
    assert data._encoder.vocabularies == {"x": tuple(sorted(values))}
    assert (
        "column 'x' is text, and has categories although it looks like numbers, such as '" in caplog.text
    ) == is_told


def frame_of():
    random = np.random.default_rng(0)
    gaps = random.normal(size=ROWS)
    gaps[::7] = np.nan
    return pandas.DataFrame(
        {
            "number": random.normal(size=ROWS),
            "gaps": gaps,
            "whole": random.integers(0, 9, ROWS).astype("int16"),
            "truth": random.random(ROWS) > 0.5,
            "day": pandas.Timestamp("2024-01-01") + pandas.to_timedelta(random.integers(0, 99, ROWS), unit="D"),
            "text": random.choice(["red", "green"], ROWS),
            "kind": pandas.Categorical(random.choice(["x", "y", "z"], ROWS)),
            "label": [row % 2 for row in range(ROWS)],
        }
    )


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow", "parquet", "csv"])
def test_frames_in_memory_give_what_files_give(kind, tmp_path):
    frame = frame_of()
    frame.to_parquet(tmp_path / "table.parquet")
    frame.to_csv(tmp_path / "table.csv", index=False)
    given = {
        "pandas": {"table": frame},
        "polars": {"table": polars.from_pandas(frame)},
        "arrow": {"table": pyarrow.Table.from_pandas(frame)},
        "parquet": {"path": tmp_path / "table.parquet"},
        "csv": {"path": tmp_path / "table.csv"},
    }[kind]
    copy = frame.copy()
    data = TabularData(**given, target="label", numeric="none")
    day = (frame["day"] - pandas.Timestamp(0)) / pandas.Timedelta(1, "D")
    blocks = [frame["text"] == text for text in ("green", "red")] + [frame["kind"] == kind for kind in "xyz"]
    absent = frame["gaps"].isna()
    filled = frame["gaps"].fillna(frame["gaps"].iloc[data._rows["train"].tolist()].median())
    expected = [frame["number"], filled, frame["whole"], frame["truth"], day, absent]
    numbers = torch.tensor(np.stack([np.asarray(column, dtype=np.float64) for column in expected], 1)).float()
    data.setup("fit")
    for split in ("train", "val", "test"):
        batch = next(iter(data.evaluation_dataloader(split)))
        inputs, _ = data.on_after_batch_transfer(batch, 0)
        rows = data._rows[split]
        torch.testing.assert_close(inputs[:, :6], numbers[rows])
        assert torch.equal(inputs[:, 6:], torch.tensor(np.stack(blocks, 1))[rows].float())
    pandas.testing.assert_frame_equal(frame, copy)
    assert data.hparams.get("table") is None  # checkpoints don't hold it


def test_what_is_no_frame_is_refused():
    for table in (5, "table.csv", object()):
        with pytest.raises(SettingError, match="table must be a frame of pandas, polars or pyarrow"):
            TabularData(table=table, target="label")


def test_row_numbers_that_pandas_wrote_are_left_out_with_a_word(caplog, tmp_path):
    frame = frame_of()[["number", "label"]].sample(frac=0.9, random_state=0)
    frame.to_csv(tmp_path / "table.csv")
    frame.to_parquet(tmp_path / "table.parquet")
    pandas.read_csv(tmp_path / "table.csv").to_csv(tmp_path / "again.csv", index=False)  # now it's called Unnamed: 0
    for name in ("table.csv", "table.parquet", "again.csv"):
        caplog.clear()
        data = TabularData(path=tmp_path / name, target="label")
        assert data.input_shape == (1,)
        with caplog.at_level("INFO"):
            data.setup("fit")
        assert any(f"of {name} is left out: pandas' row numbers" in record.message for record in caplog.records)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_pipes_folders_and_devices_are_one_sentence_at_once(ending):
    os.mkfifo(f"pipe.{ending}")
    Path(f"folder.{ending}").mkdir()
    Path(f"device.{ending}").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a named pipe"), ("folder", "a folder"), ("device", "a device")):
        with pytest.raises(SettingError, match=f"path must be a regular file, but '{name}.{ending}' is {kind}"):
            TabularData(path=f"{name}.{ending}", target="label")


def test_parquet_of_a_stranger_runs_nothing():
    """Python objects that pandas and arrow can put into parquet's metadata and extension types are never unpickled."""
    import pickle

    class Payload:
        def __reduce__(self):
            return Path("executed").touch, ()

    hostile = pickle.dumps(Payload())
    field = pyarrow.field("x", pyarrow.int64(), metadata={b"ARROW:extension:name": b"arrow.py_extension_type"})
    field = field.with_metadata({**field.metadata, b"ARROW:extension:metadata": hostile})
    schema = pyarrow.schema([field, pyarrow.field("label", pyarrow.int64())], metadata={b"pandas": hostile})
    columns = [pyarrow.array(range(ROWS)), pyarrow.array([row % 2 for row in range(ROWS)])]
    parquet.write_table(pyarrow.Table.from_arrays(columns, schema=schema), "table.parquet")
    data = TabularData(path="table.parquet", target="label")
    data.setup("fit")
    assert data.input_shape == (1,)
    assert not Path("executed").exists()
    pickle.loads(hostile)  # it would have
    assert Path("executed").exists()


def test_nothing_stays_on_disk():
    data_of(["1", "2"] * 30)
    assert sorted(path.name for path in Path().iterdir()) == ["table.csv"]


def _width(path, results):
    results.put(TabularData(path=path, target="label").input_shape)


def test_forked_process_can_read_after_its_parent_has():
    path = written(["1", "2"] * 30)
    assert TabularData(path=path, target="label").input_shape == (1,)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_width, args=(path, results))
    child.start()
    assert results.get(timeout=60) == (1,)
    child.join(60)
    assert child.exitcode == 0


def test_duckdb_is_imported_where_a_table_is_read_and_nowhere_else():
    written(["1", "2"] * 30)
    code = (
        "import sys, lightning_reg.data; print('duckdb' in sys.modules)\n"
        "lightning_reg.data.TabularData(dataset='iris'); print('duckdb' in sys.modules)\n"
        "lightning_reg.data.TabularData(path='table.csv', target='label'); print('duckdb' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, stdout=subprocess.PIPE, text=True)
    assert run.stdout.split() == ["False", "False", "True"]


@pytest.mark.parametrize("word", ["-", ".", "unknown"])
def test_one_word_among_many_numbers_is_no_category(word):
    values = [word if row % 7 == 3 else row * 1.5 for row in range(ROWS)]
    with pytest.raises(SettingError, match=rf"has '{word}' in line 5 and 51 numbers; .* leave the field empty where"):
        data_of(values)
    assert len(data_of(values, as_category=["x"])._table.columns["x"].texts) == 52
    assert not data_of([word if row % 3 == 0 else row % 4 for row in range(ROWS)])._table.columns["x"].is_number


@pytest.mark.parametrize("word", ["#N/A", "<NA>", "#n/a"])
def test_missing_values_as_excel_and_pandas_write_them(word):
    values = [word if row % 7 == 3 else row * 1.5 for row in range(ROWS)]
    column = data_of(values)._table.columns["x"]
    assert column.is_number
    assert np.flatnonzero(column.missing).tolist() == list(range(3, ROWS, 7))


@pytest.mark.parametrize("kind", ["pandas", "pyarrow"])
def test_numbers_that_a_frame_has_as_categories_are_categories(kind):
    numbers = [5, 7, None, 11] * 15
    frame = pandas.DataFrame({"x": pandas.Categorical(numbers), "n": range(ROWS), "label": ["a", "b"] * 30})
    table = pyarrow.Table.from_pandas(frame, preserve_index=False) if kind == "pyarrow" else frame
    column = TabularData(table=table, target="label")._table.columns["x"]
    assert column.texts == ("11", "5", "7")
    assert [column.texts[value] if value >= 0 else None for value in column.values[:4]] == ["5", "7", None, "11"]


def test_a_frame_with_a_column_of_another_kind_is_told_which():
    frame = pandas.DataFrame({"x": pandas.period_range("2020", periods=ROWS, freq="D"), "label": ["a", "b"] * 30})
    with pytest.raises(
        SettingError, match=r"table must hold numbers, .* but the DataFrame holds others: .*period\[D\]"
    ):
        TabularData(table=frame, target="label")
