"""Sources of images: data sets by name."""

import gzip
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_reg.data.splits import stratified_split
from lightning_reg.files import opened
from lightning_reg.settings import SettingError

__all__ = ["SOURCES", "LabeledImages", "Source"]


@dataclass(frozen=True)
class LabeledImages:
    """Images in memory.

    Attributes:
        images: (N, C, H, W), uint8.
        labels: (N,), int64 class indices; from a table of labels also (N,) or (N, T), float32.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Source:
    """A data set by name.

    Attributes:
        input_shape: (C, H, W) of one image.
        classes: Names of the classes, by index.
        load: Function from the data set's folder to the training and the test images.
        fetch: Function that puts the files into a folder unless they exist, by a download if that is allowed; None
            where nothing has to be fetched.
        mean: Mean of the training images per channel, on the scale of [0, 1], where it is known.
        std: Standard deviation, likewise.
        flips: Flips that preserve an image's class: horizontal, vertical.
    """

    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    load: Callable[[Path], tuple[LabeledImages, LabeledImages]]
    fetch: Callable[[Path, bool], None] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    flips: tuple[str, ...] = ()


def _load_digits(_: Path) -> tuple[LabeledImages, LabeledImages]:
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    # Gray values are whole numbers from 0 to 16.
    images = torch.from_numpy(values).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    targets = torch.from_numpy(labels).long()
    # The set has no test part of its own: always the same fifth, whatever the run's seed, so that no run trains on it.
    test, train = stratified_split(targets, 0.2, seed=0, name="test part", classes=_TEN)
    return LabeledImages(images[train], targets[train]), LabeledImages(images[test], targets[test])


DEBIAN = {"FashionMNIST": Path("/usr/share/datasets/fashion-mnist")}
"""Folders in which Debian's packages install data sets: dataset-fashion-mnist."""

_MAX_IDX = 2**30  # bytes; those of MNIST have 47 million
_IDX_FILES = tuple(
    f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
)


def _fetch_idx(name: str, root: Path, download: bool) -> None:
    if not _missing_idx(name, root):
        return
    if download:
        _download(name, root, _idx_remedy(name, root))


def _load_idx(name: str, root: Path) -> tuple[LabeledImages, LabeledImages]:
    missing = _missing_idx(name, root)
    if missing:
        raise SettingError(f"root {str(root)!r} has no {missing[0]} of {name}: {_idx_remedy(name, root)}")
    parts = [_read_idx(path) for file in _IDX_FILES if (path := _find_idx(name, root, file))]
    for images, labels, file in ((parts[0], parts[1], _IDX_FILES[0]), (parts[2], parts[3], _IDX_FILES[2])):
        if images.shape != (len(labels), 28, 28):
            raise SettingError(
                f"root {str(root)!r} must have as many labels as images of 28×28, but {file} is "
                f"{tuple(images.shape)} and there are {len(labels)} labels"
            )
    return LabeledImages(parts[0].unsqueeze(1), parts[1].long()), LabeledImages(parts[2].unsqueeze(1), parts[3].long())


def _missing_idx(name: str, root: Path) -> list[str]:
    return [file for file in _IDX_FILES if not _find_idx(name, root, file)]


def _idx_remedy(name: str, root: Path) -> str:
    return f"put {', '.join(_IDX_FILES)} (plain or .gz) into {str(root / name / 'raw')!r}, or set root to their folder"


def _find_idx(name: str, root: Path, file: str) -> Path | None:
    # In one folder, or where torchvision or Debian puts them.
    folders = [root, root / "raw", root / name / "raw", *([DEBIAN[name]] if name in DEBIAN else [])]
    candidates = (folder / f"{file}{ending}" for folder in folders for ending in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read_idx(path: Path) -> Tensor:
    """Reads bytes in the idx format with torchvision's reader, which needs an uncompressed file."""
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    try:
        with (
            opened("root", path, limit=_MAX_IDX) as file,
            tempfile.NamedTemporaryFile(prefix="lightning_reg-") as plain,
        ):
            if path.suffix == ".gz":
                with gzip.open(file) as unpacked:
                    plain.write(unpacked.read(_MAX_IDX))
                plain.flush()
            values: Tensor = read_sn3_pascalvincent_tensor(plain.name if path.suffix == ".gz" else str(path))
    except SettingError:
        raise
    except Exception as error:  # it can raise anything on a damaged file, even assertions without a message
        reason = str(error) or "its size isn't what it says"
        raise SettingError(f"{path} can't be read as an idx file: {reason}") from error
    if values.dtype != torch.uint8:
        raise SettingError(f"{path} must hold bytes, but holds {values.dtype}")
    return values


@dataclass(frozen=True)
class _Cifar:
    """The folder that torchvision reads a data set from, and the archive that it is unpacked from."""

    name: str
    folder: str
    archive: str

    def fetch(self, root: Path, download: bool) -> None:
        if (root / self.folder).is_dir():
            return
        if (root / self.archive).is_file():  # unpacking needs no network
            _torchvision(self.name)(root, download=True)
        elif download:
            _download(self.name, root, self._remedy(root))

    def load(self, root: Path) -> tuple[LabeledImages, LabeledImages]:
        parts = []
        for train in (True, False):
            try:
                part = _torchvision(self.name)(root, train=train)
            except RuntimeError as error:
                raise SettingError(f"root {str(root)!r} has no intact {self.name}: {self._remedy(root)}") from error
            images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
            parts.append(LabeledImages(images, torch.tensor(part.targets)))
        return parts[0], parts[1]

    def _remedy(self, root: Path) -> str:
        return f"put {self.archive}, or the folder {self.folder} that it holds, into {str(root)!r}, or set root"


def _torchvision(name: str) -> Callable[..., Any]:
    import torchvision

    dataset: Callable[..., Any] = getattr(torchvision.datasets, name)
    return dataset


def _download(name: str, root: Path, remedy: str) -> None:
    """Downloads a data set completely or not at all."""
    existed = root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
            _torchvision(name)(folder, download=True)
            shutil.copytree(folder, root, dirs_exist_ok=True)
    except (RuntimeError, OSError) as error:
        if not existed and root.is_dir():
            root.rmdir()
        raise SettingError(
            f"root {str(root)!r} has no {name}, and downloading it failed ({error}): {remedy}"
        ) from error


_TEN = tuple("0123456789")
_FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# fmt: off
_CIFAR100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)
# fmt: on


# Clothes and photographs show the same thing mirrored, but never appear upside down in use. Digits become others, or
# none at all.
_UPRIGHT = ("horizontal",)


def _idx_source(name: str, classes: tuple[str, ...], mean: float, std: float, flips: tuple[str, ...] = ()) -> Source:
    load, fetch = partial(_load_idx, name), partial(_fetch_idx, name)
    return Source((1, 28, 28), classes, load, fetch, mean=(mean,), std=(std,), flips=flips)


_CIFAR10_FILES = _Cifar("CIFAR10", "cifar-10-batches-py", "cifar-10-python.tar.gz")
_CIFAR100_FILES = _Cifar("CIFAR100", "cifar-100-python", "cifar-100-python.tar.gz")

SOURCES: dict[str, Source] = {
    "digits": Source((1, 8, 8), _TEN, _load_digits),
    "mnist": _idx_source("MNIST", _TEN, 0.1307, 0.3081),
    "fashion_mnist": _idx_source("FashionMNIST", _FASHION, 0.2860, 0.3530, _UPRIGHT),
    "cifar10": Source(
        (3, 32, 32),
        _CIFAR10,
        _CIFAR10_FILES.load,
        _CIFAR10_FILES.fetch,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        flips=_UPRIGHT,
    ),
    "cifar100": Source(
        (3, 32, 32),
        _CIFAR100,
        _CIFAR100_FILES.load,
        _CIFAR100_FILES.fetch,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        flips=_UPRIGHT,
    ),
}
"""Data sets by name. ``image_folder`` is read by :mod:`lightning_reg.data.images.folders`."""
