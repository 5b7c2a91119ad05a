"""On-disk cache of decoded images: decoding takes most of the time that a run needs to start."""

import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

__all__ = ["FEW_IMAGES", "cache_folder", "decoded_once"]

FEW_IMAGES = 1000
"""Smallest number of images that are cached; fewer are decoded in less than a second."""

_STAMP = 64  # bytes: the stamp in hexadecimal, before the pixels


def cache_folder() -> Path:
    """Returns the folder of the cache: ``lightning_reg/images`` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lightning_reg" / "images"


def decoded_once(
    paths: Sequence[str | Path], shape: tuple[int, int, int], image_size: int | None, decode: Callable[[], Tensor]
) -> Tensor:
    """Returns decoded images from the cache, or decodes and caches them.

    The cache is used only as long as every image file keeps its size and modification time. A disk that is full or
    read-only costs the time of decoding, nothing else.

    Args:
        shape: (3, H, W) of each image.
        image_size: Height and width that images are resized to; None for no resizing.

    Returns:
        (N, 3, H, W), uint8; from the cache memory-mapped, and writes to it stay in memory.
    """
    names = [os.path.abspath(path) for path in paths]
    settings = f"{shape} {image_size} Pillow {PIL.__version__}"
    file = cache_folder() / f"{_digest([*names, settings])[:32]}.bin"
    stamp = _stamp(names)
    whole = (len(paths), *shape)
    if stamp is not None and (kept := _read(file, stamp, whole)) is not None:
        return kept
    images = decode()
    if stamp is not None and _write(file, stamp, images):
        rank_zero_info(
            f"Decoded images are kept in {file} ({images.numel() / 2**20:,.0f} MiB) for the next run; cache false "
            "switches that off"
        )
    return images


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()


def _stamp(names: Sequence[str]) -> str | None:
    """Returns a hash of sizes and modification times; None where a file is inaccessible, as decoding reports better."""
    try:
        found = [os.stat(name) for name in names]
    except OSError:
        return None
    return _digest([f"{status.st_size} {status.st_mtime_ns}" for status in found])


def _read(file: Path, stamp: str, shape: tuple[int, ...]) -> Tensor | None:
    try:
        with file.open("rb") as opened:
            if opened.read(_STAMP) != stamp.encode() or os.fstat(opened.fileno()).st_size != _STAMP + np.prod(shape):
                return None
        return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="c", offset=_STAMP, shape=shape))
    except OSError:
        return None


def _write(file: Path, stamp: str, images: Tensor) -> bool:
    temporary = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as opened:
                opened.write(stamp.encode())
                images.numpy().tofile(opened)
            temporary.replace(file)  # atomically: other processes may be reading
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError:
        return False
    return True
