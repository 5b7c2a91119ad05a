"""Colour jitter: what is drawn for a batch, and how it is applied."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_reg.functional.colour import BRIGHTNESS, CONTRAST, SATURATION, jitter_colours_
from lightning_reg.settings import check_range

__all__ = ["ColourJitter", "JitterDraw"]


@dataclass(frozen=True)
class JitterDraw:
    """What was drawn for one batch.

    Attributes:
        rows: (2 · rounds + 2, N) on the host: which change each round is to a picture, its factor, the turns of hues,
            and the pictures sorted by when theirs are turned.
        rounds: How many changes of brightness, contrast and saturation there are, the loss of colours included.
        group_sizes: How many pictures' hues are turned before each round and after the last; empty where none are.
    """

    rows: Tensor
    rounds: int
    group_sizes: list[int]

    def apply_(self, pictures: Tensor, rows: Tensor) -> Tensor:
        """Jitters pictures in place, and returns them.

        Args:
            pictures: (N, C, H, W), floats on [0, 1].
            rows: As drawn, on the pictures' device.
        """
        kinds, factors, hue = rows[: self.rounds], rows[self.rounds : 2 * self.rounds], rows[-2]
        if not self.group_sizes:
            return jitter_colours_(pictures, kinds, factors)
        order = rows[-1, : sum(self.group_sizes)].long()
        return jitter_colours_(pictures, kinds, factors, hue, torch.split(order, self.group_sizes))


class ColourJitter:
    """Draws changes of brightness, contrast, saturation and hue, and the order of them, for every sample.

    Args:
        brightness: Factors are within 1 ± this, and not below 0; at least 0, as those of contrast and saturation.
        contrast: Likewise.
        saturation: Likewise.
        hue: Hues are turned by up to this part of a circle to either side, in [0, 0.5].
        grayscale_prob: Probability that a picture loses its colours, in [0, 1].
        prob: Probability that a picture is jittered at all, in [0, 1]; it may lose its colours all the same.

    Raises:
        SettingError: If a number is out of its range.
    """

    def __init__(
        self,
        *,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        grayscale_prob: float,
        prob: float = 1.0,
    ) -> None:
        check_range("brightness", brightness, low=0)
        check_range("contrast", contrast, low=0)
        check_range("saturation", saturation, low=0)
        check_range("hue", hue, low=0, high=0.5)
        check_range("grayscale_prob", grayscale_prob, low=0, high=1)
        check_range("jitter_prob", prob, low=0, high=1)
        self.strengths = {BRIGHTNESS: brightness, CONTRAST: contrast, SATURATION: saturation}
        self.hue = hue
        self.grayscale_prob = grayscale_prob
        self.prob = prob

    def draw(self, count: int, channels: int, generator: torch.Generator) -> JitterDraw:
        """Draws for a batch, on the host.

        Args:
            count: N, samples in it.
            channels: Of the pictures; those of other than three have no saturation and no hue.
            generator: Where random numbers come from.
        """
        has_colour = channels == 3
        strengths = {k: s for k, s in self.strengths.items() if s and self.prob and (has_colour or k != SATURATION)}
        changes = len(strengths)
        # When each change comes and its factor; and whether colours go, the turn of the hue, when it comes, and whether
        # there is any jitter.
        numbers = torch.rand(2 * changes + 4, count, generator=generator)
        is_jittered = numbers[-1] < self.prob
        # Sorting random numbers gives every order the same probability.
        when, hue_when = numbers[:changes], numbers[-2]
        order = when.argsort(0)
        spread = torch.tensor(list(strengths.values())).view(-1, 1)
        low = (1 - spread).clamp(min=0)
        factors = low + (1 + spread - low) * numbers[changes : 2 * changes]
        factors = torch.where(is_jittered, factors.gather(0, order), 1.0)
        kinds = torch.tensor(list(strengths), dtype=torch.float32)[order] if changes else order.float()
        if has_colour and self.grayscale_prob:
            kinds = torch.cat((kinds, torch.full((1, count), float(SATURATION))))
            factors = torch.cat((factors, (numbers[-4:-3] >= self.grayscale_prob).float()))
        rounds = len(kinds)
        group_sizes, by_group = [], torch.zeros(count)
        if has_colour and self.hue and self.prob:
            # Before which change a hue is turned; those that aren't come last.
            group = torch.where(is_jittered, (when < hue_when).sum(0), rounds + 1)
            by_group = group.argsort(stable=True).float()
            group_sizes = group.bincount(minlength=rounds + 2)[: rounds + 1].tolist()
        turns = self.hue * (2 * numbers[-3] - 1)
        rows = torch.cat((kinds, factors, turns.unsqueeze(0), by_group.unsqueeze(0)))
        return JitterDraw(rows, rounds, group_sizes)
