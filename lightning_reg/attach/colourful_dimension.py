"""The colourful dimension: a layer's histogram as a column of colours for every step that was looked at."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["COLUMN_BINS", "column_edges", "draw_columns", "thinned"]

COLUMN_BINS = 128
# Rows are spaced by asinh(a / 0.05): evenly about zero, logarithmically beyond, up to ±100.
_LINEAR, _FARTHEST = 0.05, 100.0
_PANEL_WIDTH, _PANEL_HEIGHT, _LEFT, _TOP, _BOTTOM = 256, 192, 38, 18, 16
_TICKS = (-100, -10, -1, -0.1, 0, 0.1, 1, 10, 100)
# Dark blue, violet, red, orange, yellow: more is lighter, so that it is readable without colour, too.
_COLOURS = torch.tensor([[0, 0, 20], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]])


def column_edges() -> Tensor:
    """Returns the borders between a column's rows, (COLUMN_BINS + 1,), the same for every layer."""
    farthest = math.asinh(_FARTHEST / _LINEAR)
    # Zero lies at the beginning of the upper half's first bin; it is shown there.
    return torch.linspace(-farthest, farthest, COLUMN_BINS + 1, dtype=torch.float64).sinh() * _LINEAR


def thinned(columns: Tensor, most: int) -> Tensor:
    """Returns at most so many columns, each the mean of equally many neighbours but for the last.

    Args:
        columns: (T, ...).
        most: At least 2.

    >>> thinned(torch.arange(5.0).view(5, 1), 3).flatten()
    tensor([0.5000, 2.5000, 4.0000])
    """
    while len(columns) > most:
        pairs = (columns[:-1:2] + columns[1::2]) / 2
        columns = torch.cat([pairs, columns[len(columns) // 2 * 2 :]])
    return columns


def draw_columns(layers: Mapping[str, Tensor], steps: Sequence[int], *, per_row: int = 4) -> Tensor:
    """Draws one panel a layer, side by side in rows, in the order in which the layers are given.

    Time goes to the right, values upwards on a scale that is linear about zero and logarithmic beyond; colour is the
    logarithm of the share of values.

    Args:
        layers: By name; (T, COLUMN_BINS) each, shares or counts.
        steps: The first and the last step.
        per_row: Panels in a row.

    Returns:
        (H, W, 3), uint8.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    wide, high = _LEFT + _PANEL_WIDTH + 10, _TOP + _PANEL_HEIGHT + _BOTTOM
    across = min(per_row, len(layers))
    canvas = Image.new("RGB", (wide * across, high * math.ceil(len(layers) / across)), "white")
    pen = ImageDraw.Draw(canvas)
    for index, (name, columns) in enumerate(layers.items()):
        left, top = index % across * wide + _LEFT, index // across * high + _TOP
        lowest, highest = _rows_in_use(columns)
        panel = _coloured(columns[:, lowest:highest]).numpy()
        canvas.paste(
            Image.fromarray(panel).resize((_PANEL_WIDTH, _PANEL_HEIGHT), Image.Resampling.NEAREST), (left, top)
        )
        pen.text((left, top - 14), name if len(name) <= 40 else f"…{name[-39:]}", fill="black")
        pen.text((left, top + _PANEL_HEIGHT + 2), f"step {steps[0]}", fill="black")
        pen.text((left + _PANEL_WIDTH, top + _PANEL_HEIGHT + 2), f"{steps[-1]}", fill="black", anchor="ra")
        last = math.inf
        for value in _TICKS:
            place = _row_of(value)
            height = top + _PANEL_HEIGHT * (1 - (place - lowest) / (highest - lowest))
            if lowest <= place <= highest and abs(last - height) >= 10:
                last = height
                pen.text((left - 6, height), f"{value:g}", fill="black", anchor="rm")
                pen.line([(left - 4, height), (left - 1, height)], fill="black")
    return torch.from_numpy(np.array(canvas))


def _rows_in_use(columns: Tensor) -> tuple[int, int]:
    """Returns the first row that is needed and the one behind the last, with some air around."""
    used = (columns / columns.sum(1, keepdim=True).clamp(min=1e-12) > 1e-5).any(0).nonzero().flatten()
    middle = COLUMN_BINS // 2
    lowest, highest = (int(used[0]), int(used[-1]) + 1) if len(used) else (middle, middle + 1)
    return max(0, min(lowest, middle) - 3), min(COLUMN_BINS, max(highest, middle) + 3)


def _row_of(value: float) -> float:
    farthest = math.asinh(_FARTHEST / _LINEAR)
    return (math.asinh(value / _LINEAR) / farthest + 1) / 2 * COLUMN_BINS


def _coloured(columns: Tensor) -> Tensor:
    """Returns (rows, T, 3), uint8, the largest value on top."""
    shares = columns.double() / columns.double().sum(1, keepdim=True).clamp(min=1e-12)
    heights = torch.log1p(shares * 1e4) / math.log1p(1e4) * (len(_COLOURS) - 1)
    below = heights.floor().clamp(max=len(_COLOURS) - 2).long()
    colours = torch.lerp(_COLOURS[below].double(), _COLOURS[below + 1].double(), (heights - below).unsqueeze(-1))
    return colours.round().to(torch.uint8).transpose(0, 1).flip(0).contiguous()
