"""Shared fixtures."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

# Two cores: threads that wait for one another cost more than they bring, and hang processes that fork.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Autograd looks once, at its first pass backward, for devices that want a thread. A compiler makes one known; with that
# thread no process could be forked any more.
torch.zeros(1, requires_grad=True).sum().backward()

REPOSITORY = Path(__file__).parent.parent

MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test writes to the current folder lands in a temporary one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def image_folder(tmp_path: Path) -> MakeFolder:
    """Makes a folder of images: a color a class, with noise."""

    def make(splits: tuple[str, ...] = ("train",), *, classes: int = 2, count: int = 12, size: int = 8) -> Path:
        generator = torch.Generator().manual_seed(0)
        for split in splits:
            for label in range(classes):
                folder = tmp_path / "images" / split / f"class_{label}"
                folder.mkdir(parents=True)
                for index in range(count):
                    image = torch.randint(0, 60, (3, size, size), generator=generator, dtype=torch.uint8)
                    image[label % 3] += 150
                    Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:02}.png")
        return tmp_path / "images"

    return make
