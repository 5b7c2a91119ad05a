"""A table that can't be used is refused in one sentence, which says where."""

import re

import pytest

from lightning_reg.data import TabularData
from lightning_reg.settings import SettingError

GOOD = (
    "size,color,label\n1,red,a\n2,blue,b\n3,red,a\n4,blue,b\n5,red,a\n6,blue,b\n7,red,a\n8,blue,b\n9,red,a\n10,red,b\n"
)


def assert_refused(message, content=GOOD, **settings):
    from pathlib import Path

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
    from pathlib import Path

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
