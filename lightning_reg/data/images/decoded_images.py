"""Images of a folder as they were decoded, kept on disk for the next run: decoding takes most of the start."""

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
"""Fewer than that are decoded faster than a second, and nothing is kept of them."""

_STAMP = 64  # bytes: the stamp in hexadecimal, before the pixels


def cache_folder() -> Path:
    """Returns where decoded images are kept: ``lightning_reg/images`` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lightning_reg" / "images"


def decoded_once(
    paths: Sequence[str | Path], shape: tuple[int, int, int], image_size: int | None, decode: Callable[[], Tensor]
) -> Tensor:
    """Returns images as they were decoded by an earlier run, or decodes and keeps them.

    What is kept is used only as long as every file has the size and the time of change that it had then. A disk that is
    full or read-only costs the time of decoding, nothing else.

    Args:
        shape: (3, H, W) of each.
        image_size: What they are scaled to, if they are.

    Returns:
        (N, 3, H, W), uint8, mapped from the file; what is written to it stays in memory.
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
    """Returns what changes when a file does; None where one can't be looked at, which decoding says better."""
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
            temporary.replace(file)  # whole or not at all: other processes may be reading
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError:
        return False
    return True
