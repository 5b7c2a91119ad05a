import gzip
import os
import struct

import numpy as np
import pytest
import torch
import torchvision

from lightning_reg.data.images import sources
from lightning_reg.data.images.sources import SOURCES
from lightning_reg.settings import SettingError


def write_idx(path, values, *, compressed):
    content = struct.pack(f">HBB{values.ndim}i", 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if compressed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def write_mnist(folder, *, compressed=False):
    for stem, count in (("train", 30), ("t10k", 20)):
        images = np.arange(count)[:, None, None] * np.ones((1, 28, 28))
        write_idx(folder / f"{stem}-images-idx3-ubyte", images, compressed=compressed)
        write_idx(folder / f"{stem}-labels-idx1-ubyte", np.arange(count) % 10, compressed=compressed)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **settings):
        raise RuntimeError("Error downloading") if settings.get("download") else RuntimeError("Dataset not found")

    for name in ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"):
        monkeypatch.setattr(torchvision.datasets, name, refuse)
    monkeypatch.setattr(sources, "DEBIAN", {})


def test_digits_are_scikit_learns_with_a_fixed_test_part():
    train, test = SOURCES["digits"].load(None)
    again, _ = SOURCES["digits"].load(None)
    assert len(train.labels) + len(test.labels) == 1797
    assert train.images.shape[1:] == SOURCES["digits"].input_shape
    assert train.images.max() == 255
    assert torch.equal(train.images, again.images)
    assert not {tuple(image.flatten().tolist()) for image in train.images[:50]} & {
        tuple(image.flatten().tolist()) for image in test.images
    }


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("folder", ["", "raw", "MNIST/raw"])
def test_mnist_is_used_as_it_lies(tmp_path, folder, compressed, no_network):
    write_mnist(tmp_path / folder, compressed=compressed)
    SOURCES["mnist"].fetch(tmp_path, True)
    train, test = SOURCES["mnist"].load(tmp_path)
    assert train.images.shape == (30, 1, 28, 28)
    assert train.images[7].unique().tolist() == [7]
    assert test.labels.tolist() == [index % 10 for index in range(20)]


FILES = {
    "mnist": "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte",
    "fashion_mnist": "train-images-idx3-ubyte, train-labels-idx1-ubyte",
    "cifar10": "cifar-10-python.tar.gz, or the folder cifar-10-batches-py",
    "cifar100": "cifar-100-python.tar.gz, or the folder cifar-100-python",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("download", [False, True])
def test_without_network_and_data_it_says_which_files_belong_where_and_leaves_nothing(
    tmp_path, name, download, no_network
):
    root = tmp_path / "data"

    def get():
        SOURCES[name].fetch(root, download)
        SOURCES[name].load(root)

    reason = r"downloading it failed \(Error downloading\)" if download else "has no"
    with pytest.raises(SettingError, match=rf"root '{root}' .*{reason}.*: put {FILES[name]}.* set root"):
        get()
    assert not root.exists()


def test_missing_file_among_four_is_named(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(SettingError, match="has no t10k-labels-idx1-ubyte of MNIST"):
        SOURCES["mnist"].load(tmp_path)


def test_download_is_all_or_nothing(tmp_path, monkeypatch):
    class Interrupted:
        def __init__(self, root, **_):
            write_mnist(tmp_path / root)
            raise OSError("connection reset")

    monkeypatch.setattr(torchvision.datasets, "MNIST", Interrupted)
    with pytest.raises(SettingError, match="connection reset"):
        SOURCES["mnist"].fetch(tmp_path / "data", True)
    assert list(tmp_path.iterdir()) == []


def test_archive_that_lies_there_is_unpacked_without_a_download(tmp_path, monkeypatch):
    unpacked = []
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", lambda root, **_: unpacked.append(root))
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    SOURCES["cifar10"].fetch(tmp_path, False)
    assert unpacked == [tmp_path]


def test_download_lands_in_root(tmp_path, monkeypatch):
    class Served:
        def __init__(self, root, **_):
            write_mnist(tmp_path / root / "MNIST" / "raw")

    monkeypatch.setattr(torchvision.datasets, "MNIST", Served)
    SOURCES["mnist"].fetch(tmp_path / "data", True)
    assert len(SOURCES["mnist"].load(tmp_path / "data")[0].labels) == 30
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["MNIST"]


def test_broken_idx_file_is_named(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03 too short")
    with pytest.raises(SettingError, match="train-images-idx3-ubyte can't be read as an idx file"):
        SOURCES["mnist"].load(tmp_path)


def test_labels_of_another_number_are_refused(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(29), compressed=False)
    with pytest.raises(SettingError, match=r"as many labels as images.* is \(30, 28, 28\) and there are 29 labels"):
        SOURCES["mnist"].load(tmp_path)


def test_cifar_is_read_through_torchvision(tmp_path, monkeypatch):
    class Fake:
        def __init__(self, root, train):
            self.data = np.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3).astype(np.uint8)
            self.targets = [1, 0] if train else [2, 3]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    train, test = SOURCES["cifar10"].load(tmp_path)
    assert train.images.shape == (2, 3, 32, 32)
    assert train.images[0, :, 0, 0].tolist() == [0, 1, 2]
    assert test.labels.tolist() == [2, 3]


@pytest.mark.parametrize("name", SOURCES)
def test_constants_and_classes_fit_the_images(name):
    source = SOURCES[name]
    assert len(set(source.classes)) == len(source.classes) == (100 if name == "cifar100" else 10)
    for constants in (source.mean, source.std):
        assert constants is None or len(constants) == source.input_shape[0]


def test_fashion_mnist_of_debians_package_is_found_without_a_download(tmp_path, no_network, monkeypatch):
    monkeypatch.setattr(sources, "DEBIAN", {"FashionMNIST": tmp_path / "fashion-mnist"})
    write_mnist(tmp_path / "fashion-mnist", compressed=True)
    SOURCES["fashion_mnist"].fetch(tmp_path / "data", False)
    assert len(SOURCES["fashion_mnist"].load(tmp_path / "data")[0].labels) == 30
    with pytest.raises(SettingError, match="has no train-images-idx3-ubyte of MNIST"):
        SOURCES["mnist"].load(tmp_path / "data")


def test_pipe_or_bomb_in_the_place_of_an_idx_file(tmp_path, no_network, monkeypatch):
    write_mnist(tmp_path, compressed=True)
    monkeypatch.setattr(sources, "_MAX_IDX", 4096)
    with pytest.raises(SettingError, match=r"train-images-idx3-ubyte.gz can't be read as an idx file"):
        SOURCES["mnist"].load(tmp_path)  # more bytes come out than a file of this kind ever has
    (tmp_path / "train-images-idx3-ubyte.gz").unlink()
    os.mkfifo(tmp_path / "train-images-idx3-ubyte.gz")
    with pytest.raises(SettingError, match="has no train-images-idx3-ubyte of MNIST"):
        SOURCES["mnist"].load(tmp_path)
