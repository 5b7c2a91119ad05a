import io
import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_reg.data.images.folders import ClassFolders
from lightning_reg.settings import SettingError


def test_images_and_labels_are_read_in_order(image_folder):
    folder = ClassFolders(image_folder(("train", "test"), classes=3, count=4))
    train, val, test = folder.load()
    assert train.images.shape == (12, 3, 8, 8)
    assert train.images.dtype == torch.uint8
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (train.images.float().mean((2, 3)).argmax(1) == train.labels).all()  # the fixture's colors
    assert val is None
    assert len(test.labels) == 12


def test_other_sizes_are_scaled_and_cut(image_folder):
    root = image_folder()
    Image.new("RGB", (50, 30)).save(root / "train" / "class_0" / "wide.jpg")
    assert ClassFolders(root, 16).load()[0].images.shape == (25, 3, 16, 16)


def test_gray_images_become_rgb(image_folder):
    root = image_folder()
    Image.new("L", (8, 8)).save(root / "train" / "class_0" / "gray.png")
    assert ClassFolders(root).load()[0].images.shape[1] == 3


def test_images_of_sixteen_bits_are_scaled_to_eight(image_folder):
    root = image_folder(count=1)
    pixels = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(pixels).save(root / "train" / "class_0" / "deep.png")
    assert ClassFolders(root).load()[0].images[1, 0].tolist() == (pixels // 257).tolist()


def test_what_is_transparent_becomes_white(image_folder):
    root = image_folder(count=1)
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    image.save(root / "train" / "class_0" / "alpha.png")
    loaded = ClassFolders(root).load()[0].images[1]
    assert loaded[:, 0, 0].tolist() == [10, 20, 30]
    assert (loaded[:, 1:] == 255).all()


def test_a_gray_of_sixteen_bits_that_is_transparent_becomes_white(image_folder):
    root = image_folder(count=1)
    pixels = np.full((8, 8), 1000, dtype=np.uint16)
    pixels[0] = 1001  # the same of eight bits, and opaque
    Image.fromarray(pixels).save(root / "train" / "class_0" / "deep.png", transparency=1000)
    loaded = ClassFolders(root).load()[0].images[1]
    assert (loaded[:, 0] == 3).all()
    assert (loaded[:, 1:] == 255).all()


@pytest.mark.parametrize("ending", ["JPG", "jfif", "webp", "bmp", "ppm"])
def test_any_format_that_pillow_reads_counts(image_folder, ending):
    root = image_folder(count=1)
    Image.new("RGB", (8, 8)).save(root / "train" / "class_0" / f"more.{ending}")
    assert len(ClassFolders(root).load()[0].labels) == 3


def test_images_of_floats_are_refused(image_folder):
    root = image_folder(count=1)
    Image.fromarray(np.zeros((8, 8), dtype=np.float32)).save(root / "train" / "class_0" / "float.tiff")
    with pytest.raises(SettingError, match=r"float.tiff can't be read as an image: its pixels are 32-bit"):
        ClassFolders(root).load()


def test_hidden_and_other_files_are_passed_over(image_folder):
    root = image_folder()
    (root / "train" / ".cache").mkdir()
    (root / "train" / "class_0" / "notes.txt").write_text("no image")
    (root / "train" / "class_0" / "._00.png").write_bytes(b"what some systems leave beside images")
    assert len(ClassFolders(root).load()[0].labels) == 24


def test_hidden_folders_at_any_depth_links_and_folders_named_like_images(image_folder, tmp_path):
    root = image_folder(classes=2, count=3)
    first = root / "train" / "class_0"
    for hidden in (first / ".ipynb_checkpoints", first / "deep" / ".thumbnails" / "more"):
        hidden.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(hidden / "copy.png")
    (first / "folder.png").mkdir()
    Image.new("RGB", (8, 8)).save(first / "folder.png" / "inside.png")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (8, 8)).save(elsewhere / "linked.png")
    (first / "link").symlink_to(elsewhere, target_is_directory=True)
    (first / "loop").symlink_to(first, target_is_directory=True)
    (root / "train" / "class_2").symlink_to(elsewhere, target_is_directory=True)
    folder = ClassFolders(root)
    assert folder.classes == ("class_0", "class_1", "class_2")
    names = [path.relative_to(root / "train").as_posix() for path in folder.files("train")]
    kept = [f"class_{label}/{number:02d}.png" for label in range(2) for number in range(3)]
    assert sorted(names) == sorted(
        [*kept, "class_0/folder.png/inside.png", "class_0/link/linked.png", "class_2/linked.png"]
    )


@pytest.mark.parametrize("back", [".", "..", "../..", "../../.."])
@pytest.mark.parametrize("is_linked", [False, True])
def test_a_link_back_leads_to_no_other_class(image_folder, tmp_path, back, is_linked):
    root = image_folder(classes=2, count=3)
    first = root / "train" / "class_0"
    if is_linked:
        first = first.rename(tmp_path / "first")
        (root / "train" / "class_0").symlink_to(first, target_is_directory=True)
    before = ClassFolders(root).files("train")
    (first / "loop").symlink_to((root / "train" / "class_0" / back).resolve(), target_is_directory=True)
    assert ClassFolders(root).files("train") == before


def test_a_folder_with_two_names_has_the_same_one_in_any_order_of_the_disk(image_folder, monkeypatch):
    root = image_folder(classes=2, count=3)
    first = root / "train" / "class_0"
    (first / "z").mkdir()
    Image.new("RGB", (8, 8)).save(first / "z" / "inside.png")
    (first / "a").symlink_to(first / "z", target_is_directory=True)
    walk, found = os.walk, []
    for is_reversed in (False, True):

        def walked(*args, is_reversed=is_reversed, **kwargs):
            for where, folders, names in walk(*args, **kwargs):
                folders.sort(reverse=is_reversed)
                yield where, folders, names

        monkeypatch.setattr(os, "walk", walked)
        found.append(ClassFolders(root).files("train"))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["", "train", "train/class_0", "train/class_0/below"])
def test_a_folder_that_cannot_be_listed_is_named(image_folder, monkeypatch, name):
    root = image_folder()
    (root / "train" / "class_0" / "below").mkdir()
    locked, scandir, isdir = str(root / name), os.scandir, os.path.isdir

    def locked_scandir(path):
        if str(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked_scandir)
    monkeypatch.setattr(os.path, "isdir", lambda path: isdir(path) and os.path.dirname(path) != locked)
    with pytest.raises(SettingError, match=rf"folder '{locked}' can't be read: Permission denied"):
        ClassFolders(root).load()


@pytest.mark.parametrize("ending", ["h5", "mpg", "grib", "bufr"])
def test_files_that_pillow_can_name_but_not_read_are_passed_over(image_folder, ending):
    root = image_folder(count=1)
    (root / "train" / "class_0" / f"beside.{ending}").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    assert len(ClassFolders(root).load()[0].labels) == 2


@pytest.mark.parametrize(("make", "kind"), [("pipe", "a named pipe"), ("device", "a device")])
def test_what_is_no_regular_file_is_named_and_never_opened(image_folder, make, kind):
    root = image_folder()
    path = root / "train" / "class_0" / "more.png"
    if make == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(SettingError, match=rf"image must be a regular file, but '.*more.png' is {kind}"):
        ClassFolders(root).load()


def test_odd_exif_names_the_file(image_folder):
    root = image_folder()
    # A tag for the width that says -1 where a size belongs, and one that asks for a turn.
    entries = struct.pack("<HHIi", 0x0100, 9, 1, -1) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    raw = jpeg.getvalue()
    odd = raw[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + raw[2:]
    (root / "train" / "class_0" / "odd.jpg").write_bytes(odd)
    with pytest.raises(SettingError, match=r"class_0/odd.jpg can't be read as an image"):
        ClassFolders(root).load()


def test_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"root must be a folder that exists, but is '.*nowhere'"):
        ClassFolders(tmp_path / "nowhere")


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"must have a folder 'train'.*but has nothing"):
        ClassFolders(tmp_path)


def test_one_class_is_refused(image_folder):
    with pytest.raises(SettingError, match="at least two folders, one for each class, but has class_0"):
        ClassFolders(image_folder(classes=1))


def test_class_without_images_is_refused(image_folder):
    root = image_folder()
    (root / "train" / "class_9").mkdir()
    with pytest.raises(SettingError, match="class_9' has no images"):
        ClassFolders(root).load()


def test_broken_image_is_named(image_folder):
    root = image_folder(("train", "test"))
    (root / "test" / "class_1" / "03.png").write_bytes(b"\x89PNG not really")
    with pytest.raises(SettingError, match=r"test/class_1/03.png can't be read as an image"):
        ClassFolders(root).load()


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_what_is_no_image_is_named_in_plain_words(image_folder, content):
    root = image_folder()
    (root / "train" / "class_1" / "03.png").write_bytes(content)
    with pytest.raises(SettingError, match=r"03.png can't be read as an image: it is empty, or of no format that"):
        ClassFolders(root).load()


def test_program_that_draws_an_image_is_not_run(image_folder):
    root = image_folder()
    Image.new("RGB", (8, 8)).save(root / "train" / "class_1" / "03.png", format="EPS")
    with pytest.raises(SettingError, match=r"03.png can't be read as an image: it is a program in PostScript, which"):
        ClassFolders(root).load()


def test_different_sizes_without_image_size_are_refused(image_folder):
    root = image_folder()
    Image.new("RGB", (9, 9)).save(root / "train" / "class_1" / "zz.png")
    with pytest.raises(SettingError, match=r"image_size must be set where images differ.*zz.png is \(3, 9, 9\)"):
        ClassFolders(root).load()


def test_images_larger_than_memory_are_refused(image_folder):
    with pytest.raises(SettingError, match=r"image_size must be such that all images fit into memory, but .* don't"):
        ClassFolders(image_folder(), image_size=10**8).load()


def test_a_part_of_another_name_is_said_to_be_unread(image_folder, recwarn):
    root = image_folder(("train", "valid", "test", "notes"))
    (root / "notes" / "class_0").rename(root / "notes" / "plan")
    with pytest.warns(
        UserWarning, match=r"valid' has folders of the classes of 'train', but isn't read; .* call it val$"
    ):
        assert ClassFolders(root).load()[1] is None
    (root / "valid").rename(root / "val")
    (root / "test").rename(root / "old")
    with pytest.warns(
        UserWarning, match=r"old' has folders of the classes of 'train', but isn't read; .* call it test$"
    ):
        assert ClassFolders(root).load()[1] is not None
    (root / "old").rename(root / "test")
    recwarn.clear()
    ClassFolders(root).load()
    assert not recwarn


def test_class_that_training_does_not_know_is_refused(image_folder):
    root = image_folder()
    (root / "test" / "class_7").mkdir(parents=True)
    with pytest.raises(SettingError, match="has a class 'class_7' that 'train' doesn't have"):
        ClassFolders(root).load()
