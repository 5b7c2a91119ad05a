"""Where pictures come from."""

import contextlib
import gzip
import shutil
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_reg.data.splits import stratified_split
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
        load: From the folder they lie in to the training and the test pictures.
        fetch: Downloads them into a folder unless they are there; None where nothing has to be.
        mean: Of the training pictures per channel, on the scale of [0, 1], where it is known.
        std: Likewise.
    """

    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    load: Callable[[Path], tuple[Pictures, Pictures]]
    fetch: Callable[[Path], None] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def _load_digits(_: Path) -> tuple[Pictures, Pictures]:
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    # Grey values are whole numbers from 0 to 16.
    images = torch.from_numpy(values).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    targets = torch.from_numpy(labels).long()
    # The set has no test part of its own: always the same fifth, whatever the run's seed, so that no run trains on it.
    test, train = stratified_split(targets, 0.2, seed=0, name="test part", classes=_TEN)
    return Pictures(images[train], targets[train]), Pictures(images[test], targets[test])


def _idx_folders(name: str, root: Path) -> list[Path]:
    return [root, root / "raw", root / name / "raw"]  # beside one another, or where torchvision puts them


def _fetch_idx(name: str, root: Path) -> None:
    if not _find_idx(_idx_folders(name, root), "train-images-idx3-ubyte"):
        _download(name, root)


def _load_idx(name: str, root: Path) -> tuple[Pictures, Pictures]:
    parts = []
    for stem in ("train", "t10k"):
        pair = []
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            file = _find_idx(_idx_folders(name, root), f"{stem}-{kind}")
            if file is None:
                raise SettingError(
                    f"root {str(root)!r} has no {name} and it wasn't downloaded: put {stem}-{kind} (or .gz) and its "
                    f"fellows into {str(root / name / 'raw')!r}, or set root to the folder that has them"
                )
            pair.append(_read_idx(file))
        parts.append(Pictures(pair[0].unsqueeze(1), pair[1].long()))
    return parts[0], parts[1]


def _find_idx(folders: list[Path], stem: str) -> Path | None:
    candidates = (folder / f"{stem}{ending}" for folder in folders for ending in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read_idx(path: Path) -> Tensor:
    """Reads the idx format: two zero bytes, the type (8: uint8), the rank, the sizes as big-endian int32, the data."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        rank = content[3]
        shape = np.frombuffer(content, ">i4", rank, offset=4).tolist()
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy())
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise SettingError(f"{path} can't be read as an idx file: {error}") from error


def _fetch_cifar(name: str, folder: str, root: Path) -> None:
    if not (root / folder).is_dir():
        _download(name, root)


def _load_cifar(name: str, folder: str, root: Path) -> tuple[Pictures, Pictures]:
    import torchvision

    parts = []
    for train in (True, False):
        try:
            part = getattr(torchvision.datasets, name)(root, train=train)
        except RuntimeError as error:
            raise SettingError(
                f"root {str(root)!r} has no intact {name} and it wasn't downloaded: unpack the archive of its python "
                f"version so that there is {str(root / folder)!r}, or set root to the folder that has it"
            ) from error
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        parts.append(Pictures(images, torch.tensor(part.targets)))
    return parts[0], parts[1]


def _download(name: str, root: Path) -> None:
    """Downloads all or nothing; an archive that lies in the folder already is only unpacked."""
    import torchvision

    dataset = getattr(torchvision.datasets, name)
    existed = root.exists()
    # Without a network, whoever reads the files next says which are missing and where they belong.
    with contextlib.suppress(RuntimeError, OSError):
        root.mkdir(parents=True, exist_ok=True)
        if (root / getattr(dataset, "filename", "none")).is_file():
            dataset(root, download=True)
            return
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
            dataset(folder, download=True)
            shutil.copytree(folder, root, dirs_exist_ok=True)
    if not existed:
        with contextlib.suppress(OSError):  # not empty: it worked
            root.rmdir()


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


def _idx_source(name: str, classes: tuple[str, ...], mean: float, std: float) -> Source:
    return Source((1, 28, 28), classes, partial(_load_idx, name), partial(_fetch_idx, name), mean=(mean,), std=(std,))


def _cifar_source(
    name: str, folder: str, classes: tuple[str, ...], mean: tuple[float, ...], std: tuple[float, ...]
) -> Source:
    load, fetch = partial(_load_cifar, name, folder), partial(_fetch_cifar, name, folder)
    return Source((3, 32, 32), classes, load, fetch, mean=mean, std=std)


SOURCES: dict[str, Source] = {
    "digits": Source((1, 8, 8), _TEN, _load_digits),
    "mnist": _idx_source("MNIST", _TEN, 0.1307, 0.3081),
    "fashion_mnist": _idx_source("FashionMNIST", _FASHION, 0.2860, 0.3530),
    "cifar10": _cifar_source(
        "CIFAR10", "cifar-10-batches-py", _CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    ),
    "cifar100": _cifar_source(
        "CIFAR100", "cifar-100-python", _CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    ),
}
"""Data sets by name. ``image_folder`` is read by :mod:`lightning_reg.data.folders`."""
