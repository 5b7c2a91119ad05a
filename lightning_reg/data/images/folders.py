"""Image folders: one folder per split, with one folder per class."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NoReturn

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lightning_reg.data.images.decoded_images import FEW_IMAGES, decoded_once
from lightning_reg.data.images.sources import LabeledImages
from lightning_reg.data.targets import Task
from lightning_reg.files import opened
from lightning_reg.settings import SettingError, check_count

__all__ = ["ClassFolders", "check_folder", "first_shape", "read_images"]

_IDENTIFIED_ONLY = {"BUFR", "GRIB", "HDF5", "MPEG"}
"""Formats of other files than images, which Pillow knows by name and can't decode."""


@dataclass(frozen=True)
class ClassFolders:
    """A folder with ``train/`` and optionally ``val/`` and ``test/``, each with one folder per class.

    All images are read into memory once, as RGB: N · 3 · H · W bytes. Transparent pixels become white.

    Args:
        image_size: Height and width in pixels: the shorter side is scaled to it and the center is cropped. If None, all
            images must have one size already.
        cache: Whether decoded images are cached on disk.

    Raises:
        SettingError: If the folder doesn't exist or has fewer than two classes.
    """

    root: Path
    image_size: int | None = None
    cache: bool = False
    flips: ClassVar[tuple[str, ...]] = ("horizontal", "vertical")  # nothing speaks against either

    def __post_init__(self) -> None:
        check_folder(self.root, self.image_size)
        if not self.has("train"):
            raise SettingError(
                f"root {str(self.root)!r} must have a folder 'train' with a folder for each class, but has "
                f"{_listed(self.root)}"
            )
        if len(self.classes) < 2:
            raise SettingError(
                f"{str(self.root / 'train')!r} must have at least two folders, one for each class, but has "
                f"{_listed(self.root / 'train')}"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in alphabetical order."""
        return _folders(self.root / "train")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(3, H, W) of one image."""
        return first_shape(self._labeled("train")[0][0], self.image_size)

    @property
    def task(self) -> Task:
        """Always classification: the class is the folder that an image is in."""
        return "classification"

    @property
    def num_targets(self) -> None:
        """None: an image has one class."""

    @property
    def groups(self) -> None:
        """None: an image folder has no groups."""

    def has(self, split: str) -> bool:
        """Returns whether there is a folder for a split."""
        return os.path.isdir(self.root / split)

    def load(self) -> tuple[LabeledImages, LabeledImages | None, LabeledImages | None]:
        """Reads the training, validation and test images into memory; None where there is no folder for them.

        Raises:
            SettingError: If an image is broken or of another size, or classes differ from those of ``train``.
        """
        parts = [self._load(split) if self.has(split) else None for split in ("val", "test")]
        missing = [split for split in ("val", "test") if not self.has(split)]
        for name in self._unread() if missing else ():
            rank_zero_warn(
                f"{str(self.root / name)!r} has folders of the classes of 'train', but isn't read; if it is for "
                f"validation or testing, call it {' or '.join(missing)}"
            )
        return self._load("train"), parts[0], parts[1]

    def _unread(self) -> list[str]:
        """Returns folders beside the splits that look like one."""
        others = [name for name in _folders(self.root) if name not in ("train", "val", "test")]
        found = {name: _folders(self.root / name) for name in others if os.access(self.root / name, os.R_OK | os.X_OK)}
        return [name for name, classes in found.items() if classes and {*classes} <= {*self.classes}]

    def _load(self, split: str) -> LabeledImages:
        found = self._labeled(split)
        images = read_images([path for path, _ in found], self.input_shape, self.image_size, cache=self.cache)
        return LabeledImages(images, torch.tensor([label for _, label in found]))

    def files(self, split: str) -> list[Path]:
        """Returns the images of a split, in the order they are loaded.

        Args:
            split: train, val or test.

        Raises:
            SettingError: If there are none, or classes differ from those of ``train``.
        """
        return [Path(path) for path, _ in self._labeled(split)]

    @cached_property
    def _listed(self) -> dict[str, list[tuple[str, int]]]:
        """Paths and labels by split, filled on demand: a large folder is listed only once."""
        return {}

    def _labeled(self, split: str) -> list[tuple[str, int]]:
        if split not in self._listed:
            self._listed[split] = self._list(split)
        return self._listed[split]

    def _list(self, split: str) -> list[tuple[str, int]]:
        folder = self.root / split
        unknown = sorted(set(_folders(folder)) - set(self.classes))
        if unknown:
            raise SettingError(f"{str(folder)!r} has a class {unknown[0]!r} that 'train' doesn't have")
        readable = Image.OPEN.keys() - _IDENTIFIED_ONLY
        endings = {ending for ending, kind in Image.registered_extensions().items() if kind in readable}
        files = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in _below(folder / name)
            if os.path.splitext(path)[1].lower() in endings
        ]
        present = {label for _, label in files}
        empty = [name for label, name in enumerate(self.classes) if label not in present]
        if not files or (split == "train" and empty):
            where = folder / empty[0] if files else folder
            raise SettingError(f"{str(where)!r} has no images, of any format that Pillow reads")
        return files


def check_folder(root: Path, image_size: int | None) -> None:
    """Raises unless the folder exists and the image size is valid.

    Args:
        image_size: Height and width in pixels, or None.

    Raises:
        SettingError: If the folder doesn't exist, or the size isn't a whole number of at least 1.
    """
    if image_size is not None:
        check_count("image_size", image_size)
    if not os.path.isdir(root):
        raise SettingError(f"root must be a folder that exists, but is {str(root)!r}")


def first_shape(first: str | Path, image_size: int | None) -> tuple[int, int, int]:
    """Returns (3, H, W) of all images, from the size that they are resized to or from the first image."""
    if image_size is not None:
        return (3, image_size, image_size)
    shape = _read(first, None).shape
    return (3, shape[1], shape[2])


def read_images(
    paths: Sequence[str | Path], shape: tuple[int, int, int], image_size: int | None, *, cache: bool = False
) -> Tensor:
    """Reads images into memory.

    Args:
        shape: (3, H, W) that each image must have.
        image_size: Height and width that images are resized to; None for no resizing.
        cache: Whether decoded images are cached on disk and read from there next time.

    Returns:
        (N, 3, H, W), uint8.

    Raises:
        SettingError: If an image is missing, broken or of another shape.
    """
    if cache and len(paths) >= FEW_IMAGES:
        return decoded_once(paths, shape, image_size, lambda: _decoded(paths, shape, image_size))
    return _decoded(paths, shape, image_size)


def _decoded(paths: Sequence[str | Path], shape: tuple[int, int, int], image_size: int | None) -> Tensor:
    try:
        images = torch.empty((len(paths), *shape), dtype=torch.uint8)
    except RuntimeError as error:
        raise SettingError(
            f"image_size must be such that all images fit into memory, but {len(paths):,} of {shape} don't"
        ) from error

    def fill(position: int) -> None:
        image = _read(paths[position], image_size)
        if tuple(image.shape) != shape:
            raise SettingError(
                f"image_size must be set where images differ in size: {paths[position]} is {tuple(image.shape)}, "
                f"another is {shape}"
            )
        images[position] = image

    with ThreadPoolExecutor() as pool:  # decoding releases the GIL
        for _ in pool.map(fill, range(len(paths))):
            pass
    return images


def _read(path: str | Path, image_size: int | None) -> Tensor:
    try:
        # Reading anything but a regular file, such as a pipe, may block forever.
        with opened("image", path) as content, Image.open(content) as file:
            if file.format == "EPS":  # which Pillow would have Ghostscript run
                raise ValueError("it is a program in PostScript, which isn't run")
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):  # Pillow's own conversion would cut off at 255
                values, clear = np.asarray(image), image.info.get("transparency")
                image = Image.fromarray((values // 257).astype(np.uint8))
                if clear is not None:
                    image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
            elif image.mode in ("I", "F"):
                raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) of unknown range")
            if image.has_transparency_data:  # otherwise the hidden color would show, often black
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
    except SettingError:
        raise
    except UnidentifiedImageError as error:  # whose message names the opened file, not the path
        raise SettingError(
            f"{path} can't be read as an image: it is empty, or of no format that Pillow reads"
        ) from error
    except Exception as error:  # Pillow's readers can raise anything on a damaged file
        raise SettingError(f"{path} can't be read as an image: {error}") from error
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W)


def _below(folder: Path) -> list[str]:
    """Returns files at any depth, following links to folders, each folder once; hidden ones are skipped."""
    found: list[str] = []
    # A link back to what holds the folder would lead to other classes.
    holders = [*folder.absolute().parents, *folder.resolve().parents]
    seen = {os.path.realpath(holder) for holder in holders}
    for where, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        real = os.path.realpath(where)
        # Sorted, so that a folder with two names has the same one on any disk.
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(where, name) for name in names if not name.startswith(".") and real not in seen]
        seen.add(real)
    return sorted(found, key=lambda path: path.split(os.sep))  # in the order of paths: folder by folder


def _refuse_folder(error: OSError) -> NoReturn:
    raise SettingError(f"folder {str(error.filename)!r} can't be read: {error.strerror}") from error


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        _refuse_folder(error)


def _folders(folder: Path) -> tuple[str, ...]:
    return tuple(entry.name for entry in _entries(folder) if entry.is_dir() and not entry.name.startswith("."))


def _listed(folder: Path, most: int = 5) -> str:
    names = [entry.name for entry in _entries(folder)]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"
