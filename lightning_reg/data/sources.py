"""Where pictures come from."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_reg.settings import SettingError

__all__ = ["SOURCES", "Pictures", "Source"]


@dataclass(frozen=True)
class Pictures:
    """Pictures in memory.

    Attributes:
        images: (N, C, H, W), uint8.
        labels: (N,), int64.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Source:
    """A data set by name.

    Attributes:
        input_shape: (C, H, W) of one picture.
        classes: Names of the classes, by index.
        load: From (root, whether a download is allowed) to the training and the test pictures.
        mean: Of the training pictures per channel, on the scale of [0, 1], where it is known.
        std: Likewise.
    """

    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    load: Callable[[Path, bool], tuple[Pictures, Pictures]]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def _load_digits(root: Path, download: bool) -> tuple[Pictures, Pictures]:
    from sklearn.datasets import load_digits

    from lightning_reg.data.splits import stratified_split

    values, labels = load_digits(return_X_y=True)
    # Grey values are whole numbers from 0 to 16.
    images = torch.from_numpy(values).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    targets = torch.from_numpy(labels).long()
    # The set has no test part of its own: always the same fifth, whatever the run's seed, so that no run trains on it.
    test, train = stratified_split(targets, 0.2, seed=0, name="test part", classes=_TEN)
    return Pictures(images[train], targets[train]), Pictures(images[test], targets[test])


def _mnist_like(name: str) -> Callable[[Path, bool], tuple[Pictures, Pictures]]:
    def load(root: Path, download: bool) -> tuple[Pictures, Pictures]:
        # As they lie, plain or compressed: beside one another, or in the folders that torchvision makes.
        folders = [root, root / "raw", root / name / "raw"]
        if not _find_idx(folders, "train-images-idx3-ubyte") and download:
            _download(name, root)
        parts = []
        for stem in ("train", "t10k"):
            files = [_find_idx(folders, f"{stem}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
            if None in files:
                raise _missing(
                    name,
                    root,
                    f"put train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
                    f"t10k-labels-idx1-ubyte (plain or .gz) into {root / name / 'raw'}",
                )
            images, labels = (_read_idx(file) for file in files if file)
            parts.append(Pictures(images.unsqueeze(1), labels.long()))
        return parts[0], parts[1]

    return load


def _find_idx(folders: list[Path], stem: str) -> Path | None:
    candidates = (folder / f"{stem}{ending}" for folder in folders for ending in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read_idx(path: Path) -> Tensor:
    """Reads the idx format: two zero bytes, the type (8: uint8), the rank, the sizes as big-endian int32, the data."""
    try:
        content = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
        rank = content[3]
        shape = np.frombuffer(content, ">i4", rank, offset=4).tolist()
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy())
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise SettingError(f"{path} can't be read as an idx file: {error}") from error


def _cifar(name: str, folder: str) -> Callable[[Path, bool], tuple[Pictures, Pictures]]:
    def load(root: Path, download: bool) -> tuple[Pictures, Pictures]:
        import torchvision

        if not (root / folder).is_dir() and download:
            _download(name, root)
        parts = []
        for train in (True, False):
            try:
                part = getattr(torchvision.datasets, name)(root, train=train)
            except RuntimeError as error:
                raise _missing(name, root, f"unpack the python version's archive to {root / folder}") from error
            parts.append(Pictures(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)))
        return parts[0], parts[1]

    return load


def _download(name: str, root: Path) -> None:
    """Fetches a data set with torchvision; without a network, says where to put the files."""
    import torchvision

    try:
        getattr(torchvision.datasets, name)(root, download=True)
    except (RuntimeError, OSError):
        return  # whoever reads the files says what is missing, and where it belongs


def _missing(name: str, root: Path, remedy: str) -> SettingError:
    return SettingError(f"{name} isn't in root {str(root)!r} and couldn't be downloaded: {remedy}, or set root")


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

SOURCES: dict[str, Source] = {
    "digits": Source((1, 8, 8), _TEN, _load_digits),
    "mnist": Source((1, 28, 28), _TEN, _mnist_like("MNIST"), (0.1307,), (0.3081,)),
    "fashion_mnist": Source((1, 28, 28), _FASHION, _mnist_like("FashionMNIST"), (0.2860,), (0.3530,)),
    "cifar10": Source(
        (3, 32, 32), _CIFAR10, _cifar("CIFAR10", "cifar-10-batches-py"), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    ),
    "cifar100": Source(
        (3, 32, 32), _CIFAR100, _cifar("CIFAR100", "cifar-100-python"), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    ),
}
"""Data sets by name. ``image_folder`` is read by :mod:`lightning_reg.data.folders`."""
