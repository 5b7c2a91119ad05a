"""Images with a table of their labels, and folds of training images."""

import os

import pandas
import pytest
import torch
from PIL import Image

from lightning_reg.data import ImageData
from lightning_reg.settings import SettingError

COUNT = 40


@pytest.fixture
def labeled(tmp_path):
    """Writes images whose gray says which they are, and a table of labels."""

    def write(table="labels.csv", **columns):
        for number in range(COUNT):
            path = tmp_path / "images" / f"{number % 2}" / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, number, number)).save(path)
        frame = pandas.DataFrame(
            {
                "file": [f"{number % 2}/{number:02d}.png" for number in range(COUNT)],
                "sky": [number % 2 for number in range(COUNT)],
                "sea": [number // 2 % 2 for number in range(COUNT)],
                "age": [number / 4 for number in range(COUNT)],
                "kind": ["abc"[number % 3] for number in range(COUNT)],
                "person": [f"p{number % 13}" for number in range(COUNT)],
                "empty": [None] * COUNT,
                **columns,
            }
        )
        path = tmp_path / table
        if path.suffix == ".parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False)
        return {"dataset": "image_folder", "root": tmp_path / "images", "labels": path}

    return write


def numbers_of(data, split):
    """Which images a split has, and its targets."""
    batches = list(data.evaluation_dataloader(split))
    images, targets = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    return images[:, 0, 0, 0].tolist(), targets


@pytest.mark.parametrize("table", ["labels.csv", "labels.parquet"])
@pytest.mark.parametrize(
    ("target", "task", "classes", "targets", "expected"),
    [
        (["sky", "sea"], "multilabel", ("sky", "sea"), 2, lambda number: [number % 2, number // 2 % 2]),
        ("age", "regression", (), 1, lambda number: number / 4),
        (["age", "sky"], "regression", (), 2, lambda number: [number / 4, number % 2]),
        ("kind", "classification", ("a", "b", "c"), None, lambda number: number % 3),
    ],
)
def test_targets_of_a_table_belong_to_their_images(labeled, table, target, task, classes, targets, expected):
    data = ImageData(**labeled(table), target=target, val_size=10)
    assert (data.task, data.classes, data.num_targets) == (task, classes, targets)
    assert data.num_classes == (len(classes) or None)
    assert data.input_shape == (3, 8, 8)
    data.setup("fit")
    seen = []
    for split, count in (("train", 30), ("val", 10)):
        numbers, values = numbers_of(data, split)
        assert len(numbers) == count
        assert values.tolist() == [expected(number) for number in numbers]
        assert data.sample_names(split) == [f"{number % 2}/{number:02d}.png" for number in numbers]
        seen += numbers
    assert sorted(seen) == list(range(COUNT))
    with pytest.raises(SettingError, match="must have"):
        data.test_dataloader()


def test_parts_are_the_tables(labeled):
    parts = ["train"] * 20 + ["val"] * 8 + ["test"] * 12
    data = ImageData(**labeled(part=parts), target="age")
    data.setup("fit")
    for split in ("train", "val", "test"):
        assert numbers_of(data, split)[0] == [number for number, part in enumerate(parts) if part == split]


def test_a_table_without_a_part_is_told_how_it_would_have_one(labeled):
    data = ImageData(**labeled(), target="age")
    data.setup("fit")
    with pytest.raises(SettingError, match="labels must have a column part with rows that are 'test' for this"):
        data.test_dataloader()


def test_group_is_never_on_both_sides(labeled):
    data = ImageData(**labeled(), target="age", group_column="person", folds=3, fold=1)
    data.setup("fit")
    groups = [{number % 13 for number in numbers_of(data, split)[0]} for split in ("train", "val")]
    assert groups[0].isdisjoint(groups[1])
    assert groups[0] | groups[1] == set(range(13))


def test_folds_hold_every_training_image_out_once():
    held = []
    for fold in range(4):
        data = ImageData(dataset="digits", folds=4, fold=fold)
        data.setup("fit")
        held.append(data._splits["val"].indices)
        assert not set(held[-1].tolist()) & set(data._splits["train"].indices.tolist())
    total = len(data._splits["train"]) + len(data._splits["val"])
    assert torch.cat(held).sort().values.tolist() == list(range(total))
    other = ImageData(dataset="digits", folds=4, fold=3, repeat=1)
    other.setup("fit")
    assert not torch.equal(other._splits["val"].indices, held[-1])


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({}, {"target": "ages"}, "target must be a column of labels.csv, .* but is 'ages'"),
        (
            {"file": ["0/00.png"] * 2 + [f"{row}" for row in range(38)]},
            {},
            "must name each image once, but names '0/00",
        ),
        (
            {"file": ["../0/00.png"] + [f"{row}" for row in range(39)]},
            {},
            "column 'file' of labels.csv must say where images lie below root, but has '../0/00.png'",
        ),
        (
            {"file": [None] + [f"{row}" for row in range(39)]},
            {},
            "column 'file' of labels.csv must have a name in every",
        ),
        (
            {"part": ["train"] * 39 + ["vall"]},
            {},
            "column 'part' of labels.csv must be train, val or test, but has 'vall'",
        ),
        ({"part": ["val"] * 40}, {}, "column 'part' of labels.csv must be train, val or test, but has no train"),
        (
            {"part": ["train"] * 20 + ["test"] * 20},
            {"group_column": "person"},
            "group_column must have no group in two parts, but 'p7' is in train and test",
        ),
        (
            {"sky": [2] * 20 + [1] * 20},
            {"target": ["sky", "sea"], "task": "multilabel"},
            "'sky' must be 0 or 1 in every",
        ),
        ({"age": [None] + [2.5] * 38 + [1.5]}, {}, "target 'age' must be known in every row of labels.csv, .* line 2"),
        ({}, {"target": "file"}, "target must not be 'file'"),
        ({}, {"target": None}, "labels, target, task and group_column must be given for an image_folder with a table"),
        ({}, {"labels": "labels.png"}, "labels must be a file that exists, but is 'labels.png'"),
        ({}, {"labels": "s3://x/labels.csv"}, "labels must be on this machine, but is 's3://x/labels.csv'; download"),
        ({}, {"target": 5}, "target must be the name of a column, or several, but is 5"),
        ({}, {"labels": None}, "labels, target, task and group_column must be given for an image_folder with a table"),
        ({}, {"labels": "nowhere.csv"}, "labels must be a file that exists, but is 'nowhere.csv'"),
    ],
)
def test_tables_that_do_not_fit_are_one_sentence(labeled, columns, settings, message):
    with pytest.raises(SettingError, match=message) as error:
        ImageData(**{**labeled(**columns), "target": "age", **settings})
    assert "\n" not in str(error.value)


def test_table_without_a_column_of_files_is_refused(labeled):
    settings = labeled()
    renamed = pandas.read_csv(settings["labels"]).rename(columns={"file": "image"})
    renamed.to_csv(settings["labels"], index=False)
    with pytest.raises(SettingError, match=r"labels\.csv must have a column 'file', but has image, sky, sea"):
        ImageData(**settings, target="age")


def test_image_that_is_missing_or_a_pipe_is_named(labeled, tmp_path):
    settings = labeled()
    (tmp_path / "images" / "1" / "07.png").unlink()
    with pytest.raises(SettingError, match=r"image must be a file that exists, but is '.*1/07.png'"):
        ImageData(**settings, target="age").setup("fit")
    os.mkfifo(tmp_path / "images" / "1" / "07.png")
    with pytest.raises(SettingError, match=r"image must be a regular file, but '.*1/07.png' is a named pipe"):
        ImageData(**settings, target="age").setup("fit")


def test_folds_of_images_that_have_a_validation_part_are_refused(labeled):
    data = ImageData(**labeled(part=["train", "val"] * 20), target="age", folds=3)
    with pytest.raises(SettingError, match="folds must be left out where images to validate on are given, but is 3"):
        data.setup("fit")
