"""A table that can't be used is refused in one sentence, which says where."""

import gzip
import re
from pathlib import Path

import pytest

from lightning_reg.data import TabularData
from lightning_reg.settings import SettingError
from lightning_reg.transforms import CutMix

GOOD = (
    "size,color,label\n1,red,a\n2,blue,b\n3,red,a\n4,blue,b\n5,red,a\n6,blue,b\n7,red,a\n8,blue,b\n9,red,a\n10,red,b\n"
)


def assert_refused(message, content=GOOD, **settings):
    path = Path("table.csv")
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    with pytest.raises(SettingError, match=message) as error:
        TabularData(**{"path": path, "target": "label", **settings})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target": "lable"},
            "target must be a column of table.csv, which has size, color, label, but is 'lable'; did",
        ),
        (
            {"ignore": ["weight"]},
            "ignore must be a column of table.csv, which has size, color, label, but is 'weight'",
        ),
        ({"as_category": ["weight"]}, "as_category must be a column of table.csv"),
        ({"ignore": ["label"]}, "ignore must not name the target 'label'"),
        ({"ignore": ["size", "color"]}, "table.csv must have a column beside the target 'label', but has none"),
        ({"target": None}, "target must name the column of table.csv to predict, but is left out"),
        ({"dataset": "iris"}, "one of dataset .*, path and table must be given, but 2 are: iris and table.csv"),
        ({"path": None, "target": None}, "one of dataset .*, path and table must be given, but none is"),
        ({"path": None, "dataset": "iris"}, "target, ignore, .* must be left out for iris"),
        ({"path": None, "target": None, "dataset": "irus"}, "dataset must be one of iris, .*did you mean 'iris'"),
        ({"path": "nowhere.csv"}, "path must be a file that exists, but is 'nowhere.csv'"),
        ({"path": "."}, "path must be a regular file, but '.' is a folder"),
        ({"task": "regresion"}, "task must be one of"),
        ({"task": "regression"}, "task must be classification for a target of text, 'label', but is regression"),
        ({"numeric": "minmax"}, "numeric must be one of"),
        ({"categorical": "ordinal"}, "categorical must be one of"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, but is 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"val_size": 1}, "val_size must leave at least one sample of every class in both parts"),
        ({"val_size": "abc"}, "val_size must be a number of samples or a fraction, but is 'abc'"),
        ({"test_size": [1]}, r"test_size must be a number of samples or a fraction, but is \[1\]"),
        ({"path": "http://h/x.csv"}, "path must be on this machine, but is 'http://h/x.csv'; download it first"),
        ({"path": 5}, "path must be a path, but is 5"),
        ({"target": 5}, "target must be the name of a column, or several, but is 5"),
        ({"ignore": 5}, "ignore must be the name of a column, or several, but is 5"),
        ({"as_category": 5}, "as_category must be the name of a column, or several, but is 5"),
        ({"group_column": 5}, "group_column must be a column of table.csv, which has size, color, label, but is 5"),
        ({"mix": CutMix()}, "mix must be for rows, but is CutMix.*, which is for images"),
        ({"test_size": 0}, r"test_size must be in \[1, 10\]"),
    ],
)
def test_settings(settings, message):
    assert_refused(message, **settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "table.csv must have a line of column names, but is empty"),
        ("size,label\n", "table.csv must have rows, but has none"),
        (
            "size,label\n1,a\n2,a\n\n3,a\n",
            "target 'label' must have different values, but is a in all 3 rows of table.csv",
        ),
        ("size,label\n1,a\n2,b\n3\n", "table.csv must have 2 fields in every line, as in the first, but line 4 has 1"),
        (
            "size,label\r\n1,a\r\n2,b\n3,a\r\n",
            "table.csv must end all lines alike, with CR LF as the first, but line 3 ends with LF",
        ),
        ("size,label\n1,a\r2,b\n", "table.csv must end all lines alike, with LF as the first, but line 2 ends with CR"),
        ("size,label\n1,a\n2,b,c\n", "table.csv must have 2 fields .* but line 3 has 3"),
        (
            "size,label\n1,a\n2,\n3,b\n4,NA\n",
            "target 'label' must be known in every row .* missing in line 3 and 1 more",
        ),
        ("size,size,label\n1,2,a\n", "must have columns of different names, but has 'size' several times"),
        (",size,label\nx,2,a\ny,3,b\n", "must have a name for every column, but column 1 of 3 has none"),
        ("size,,label\n0,2,a\n1,3,b\n", "must have a name for every column, but column 2 of 3 has none"),
        (
            "size,label\n,a\n,b\n",
            r"column 'size' of table.csv must have values, but all 2 are missing; .*ignore: \[size\]",
        ),
        (
            "size,label\n1,a\ninf,b\n-inf,b\n",
            "column 'size' .* must have finite numbers, but has inf in line 3 and 1 more",
        ),
        (
            "size,label\n" + "1,a\n2,b\n" * 20 + "3x,a\n",
            "column 'size' must be all numbers or all text, but has '3x' in line 42 and 40 numbers; .*as_category",
        ),
        (
            "day,label\n2024-02-28,a\n2024-02-30,b\n",
            "column 'day' must have dates that exist, but has '2024-02-30' in line 3",
        ),
        (
            "size,label\n1,a\n2,b\n3,a\n1e160,b\n-1e300,a\n",
            "column 'size' of table.csv must have numbers that 32 bits can hold, but has 1e.160 in line 5 and 1 more",
        ),
        ("size,label\n1,1.5\n2,1e300\n", "column 'label' .* that 32 bits can hold, but has 1e.300 in line 3"),
        ("color,label\n" + "red,a\nred,b\n" * 20, "must have a column to learn from, but 'color' never changes in the"),
        ("size,color,label\n" + "1,red,a\n1,red,b\n" * 20, "to learn from, but 'size', 'color' never change in the"),
        (
            "number,label\n" + "".join(f"{10**19 + row},{'ab'[row % 2]}\n" for row in range(40)),
            r"'number' never changes in the \d+ training rows as it is read: numbers keep 15 digits; .* as_category",
        ),
        (
            "size,label\n" + "".join(f"{row},{10**19 + row}\n" for row in range(40)),
            "target 'label' must have different values, but is 1.* of table.csv as it is read: numbers keep 15 digits",
        ),
        (GOOD.encode("utf-16"), "table.csv must be UTF-8 text, but line 1 isn't"),
        (GOOD.replace("red", "r\0d").encode(), "table.csv must be UTF-8 text, but line 2 isn't"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "table.csv must be UTF-8 text, but line 1 isn't"),
        (b"size,label\n1,a\n2,\xff\n", "table.csv must be UTF-8 text, but line 3 isn't"),
        ('size,label\n1,a\n2,"b\n', "table.csv can't be read in line 3"),
        ("size,label\n" + "1,a\n" * 9 + "2,b\n", "test_size must leave at least one sample of every class"),
    ],
)
def test_contents(content, message):
    assert_refused(message, content)


def test_column_that_is_missing_in_all_training_rows():
    lines = [f"{row},{'xy'[row % 2]},{'ab'[row % 2]}" for row in range(40)]
    content = "\n".join(["size,letter,label", *lines])
    Path("table.csv").write_text(content)
    tested = TabularData(path="table.csv", target="label")._rows["test"].tolist()
    lines = [line if row in tested else line.replace("x,", ",").replace("y,", ",") for row, line in enumerate(lines)]
    assert_refused(
        "column 'letter' of table.csv must have values in the training rows", "\n".join(["size,letter,label", *lines])
    )


def test_fractions_are_no_classes():
    assert_refused(
        "task must be regression for a target of fractions, but is classification for 'label', which has 0.5",
        "size,label\n1,0.5\n2,1\n",
        task="classification",
    )


def test_file_of_an_unknown_kind(tmp_path):
    (tmp_path / "table.xlsx").write_bytes(b"")
    with pytest.raises(
        SettingError, match=re.escape("path must end with .csv, .tsv, .txt (or one of these and .gz), ")
    ):
        TabularData(path=tmp_path / "table.xlsx", target="label")


def test_packed_file_that_is_damaged():
    packed = bytearray(gzip.compress(GOOD.encode()))
    packed[20:40] = bytes(20)
    for content in (bytes(packed), bytes(packed[:30]), GOOD.encode()):
        Path("table.csv.gz").write_bytes(content)
        with pytest.raises(SettingError, match=r"table.csv.gz can't be read: "):
            TabularData(path="table.csv.gz", target="label")
