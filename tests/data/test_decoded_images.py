"""Images of a folder are decoded once, and anew whenever something may have changed."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_reg.data import ImageData
from lightning_reg.data.images import decoded_images, folders
from lightning_reg.data.images.decoded_images import cache_folder
from lightning_reg.data.images.folders import ClassFolders
from lightning_reg.settings import SettingError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(folders, "FEW_IMAGES", 1)


@pytest.fixture
def decoded(monkeypatch):
    """Paths that have been decoded."""
    paths = []
    read = folders._read

    def remembering(path, image_size):
        paths.append(Path(path))
        return read(path, image_size)

    monkeypatch.setattr(folders, "_read", remembering)
    return paths


def load(root, image_size=None):
    return ClassFolders(root, image_size, cache=True).load()[0]


def test_a_second_run_decodes_nothing_and_has_the_same_images(image_folder, decoded):
    root = image_folder()
    plain = ClassFolders(root).load()[0]
    assert not cache_folder().exists()
    first = load(root)
    decoded.clear()
    second = load(root)
    assert decoded == [root / "train" / "class_0" / "00.png"]  # whose size is that of all
    assert plain.images.equal(first.images)
    assert first.images.equal(second.images)
    assert first.labels.equal(second.labels)


def change_pixels(path, root):
    Image.new("RGB", (8, 8)).save(path)
    os.utime(path, ns=(0, 0))  # however coarse the file system's clock is


def touch(path, root):
    os.utime(path, ns=(1, 1))


def remove(path, root):
    path.unlink()


def add(path, root):
    Image.new("RGB", (8, 8)).save(path.with_name("new.png"))


def cut_off(path, root):
    (kept,) = cache_folder().iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])


def overwrite(path, root):
    (kept,) = cache_folder().iterdir()
    kept.write_bytes(b"something else")


def upgrade(path, root):
    decoded_images.PIL.__version__ += "+"


@pytest.mark.parametrize("change", [change_pixels, touch, remove, add, cut_off, overwrite, upgrade])
def test_what_may_have_changed_is_decoded_anew(image_folder, decoded, change, monkeypatch):
    monkeypatch.setattr(decoded_images.PIL, "__version__", "1")
    root = image_folder()
    load(root)
    change(root / "train" / "class_1" / "03.png", root)
    expected = ClassFolders(root).load()[0]
    decoded.clear()
    assert load(root).images.equal(expected.images)
    assert len(decoded) == 1 + len(expected.labels)
    decoded.clear()
    load(root)
    assert len(decoded) == 1


def test_other_sizes_are_kept_apart(image_folder):
    root = image_folder()
    assert load(root, 4).images.shape[-1] == 4
    assert load(root, 6).images.shape[-1] == 6
    assert load(root, 4).images.equal(ClassFolders(root, 4).load()[0].images)


def test_writing_into_loaded_images_changes_no_file(image_folder):
    root = image_folder()
    load(root)
    images = load(root).images
    expected = images.clone()
    images.zero_()
    assert load(root).images.equal(expected)


@pytest.mark.parametrize("problem", ["a file in the way", "a full disk"])
def test_where_nothing_can_be_kept_images_are_decoded(image_folder, tmp_path, monkeypatch, problem):
    root = image_folder()
    if problem == "a file in the way":
        (tmp_path / "cache").write_text("no folder")
    else:

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(decoded_images.secrets, "token_hex", lambda _: "temporary")
        monkeypatch.setattr(torch.Tensor, "numpy", full)
    assert load(root).images.equal(ClassFolders(root).load()[0].images)
    assert not list(tmp_path.glob("cache/**/*.bin*"))


def test_a_file_that_is_gone_is_named(image_folder):
    root = image_folder()
    load(root)
    path = root / "train" / "class_1" / "03.png"
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(SettingError, match=r"image must be a file that exists, but is .*03\.png"):
        load(root)


def test_it_is_said_where_images_are_kept_and_how_to_switch_that_off(image_folder, caplog, decoded):
    root = image_folder(count=20)
    settings = {"dataset": "image_folder", "root": root, "val_size": 4}
    with caplog.at_level("INFO"):
        ImageData(**settings, cache=False).setup("fit")
    assert "Decoded images" not in caplog.text
    assert not cache_folder().exists()
    with caplog.at_level("INFO"):
        ImageData(**settings).setup("fit")
    assert f"Decoded images are kept in {cache_folder()}" in caplog.text
    assert "cache false switches that off" in caplog.text
    decoded.clear()
    ImageData(**settings).setup("fit")
    assert len(decoded) <= 2
