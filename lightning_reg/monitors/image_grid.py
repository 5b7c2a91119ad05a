"""Images side by side, each with a caption."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["captioned_grid"]

_SMALLEST, _LARGEST = 112, 224  # sides of an image in pixels, so that captions fit and files stay small
_TEXT, _LINE, _GAP = 13, 16, 8


def captioned_grid(images: Tensor, captions: Sequence[Sequence[str]]) -> Image.Image:
    """Draws images in rows, each with a few lines of text below it.

    Small images are enlarged by a whole factor, so that pixels stay squares; large ones lose rows and columns.

    Args:
        images: Images, (N, C, H, W), floats in [0, 1], with one or three channels, on the host.
        captions: Lines of text for each image; lines wider than the image are cut off.

    Returns:
        An RGB image.

    >>> import torch
    >>> captioned_grid(torch.zeros(5, 1, 8, 8), [["3"]] * 5).size
    (368, 280)
    """
    tiles = [_tile(image) for image in images.mul(255).round().byte()]
    width = max(_SMALLEST, tiles[0].width)
    lines = max(map(len, captions), default=0)
    height = tiles[0].height + lines * _LINE
    columns = math.ceil(math.sqrt(len(tiles) * height / width))  # about as high as wide
    rows = math.ceil(len(tiles) / columns)
    grid = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(_TEXT)
    for index, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        left, top = _GAP + index % columns * (width + _GAP), _GAP + index // columns * (height + _GAP)
        grid.paste(tile, (left, top))
        for number, line in enumerate(caption):
            text = line
            while len(text) > 1 and draw.textlength(text, font) > width:
                text = text[:-2] + "…"
            draw.text((left, top + tile.height + number * _LINE), text, fill="black", font=font)
    return grid


def _tile(image: Tensor) -> Image.Image:
    channels, height, width = image.shape
    array = image.expand(3, -1, -1) if channels == 1 else image
    tile = Image.fromarray(np.ascontiguousarray(array.permute(1, 2, 0).numpy()))
    longest = max(height, width)
    scale = min(1.0, _LARGEST / longest) if longest >= _SMALLEST else math.ceil(_SMALLEST / longest)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # A strip of features would be a few pixels high.
    size = (max(size[0], _LINE), max(size[1], _LINE))
    return tile.resize(size, Image.Resampling.NEAREST)
