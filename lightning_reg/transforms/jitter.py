"""Color jitter: the draw for a batch, and its application."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_reg.functional.batch.color import BRIGHTNESS, CONTRAST, SATURATION, jitter_colors_
from lightning_reg.settings import check_range

__all__ = ["ColorJitter", "JitterDraw"]


@dataclass(frozen=True)
class JitterDraw:
    """The draw for one batch.

    Attributes:
        rows: (2 · rounds + 1, N) on the host: the kind of change in each round, its factor, and the shift of hue.
        rounds: Number of changes of brightness, contrast and saturation, the conversion to gray included.
        hue_at: Round before which hues are shifted; None for no shift.
    """

    rows: Tensor
    rounds: int
    hue_at: int | None

    def apply_(self, images: Tensor, rows: Tensor) -> Tensor:
        """Jitters images in place, and returns them.

        Args:
            images: (N, C, H, W), floats on [0, 1].
            rows: The drawn rows, on the images' device.
        """
        kinds, factors = rows[: self.rounds], rows[self.rounds : 2 * self.rounds]
        if self.hue_at is None:
            return jitter_colors_(images, kinds, factors)
        return jitter_colors_(images, kinds, factors, rows[-1], self.hue_at)


class ColorJitter:
    """Draws changes of brightness, contrast, saturation and hue, and their order, for every sample.

    Args:
        brightness: Largest change of brightness, at least 0: factors are uniform in 1 ± this, but not below 0.
        contrast: Largest change of contrast, likewise.
        saturation: Largest change of saturation, likewise.
        hue: Largest shift of hue to either side, as a fraction of the color circle, in [0, 0.5].
        grayscale_prob: Probability that an image becomes gray, in [0, 1].
        prob: Probability that an image is jittered at all, in [0, 1]; independent of the conversion to gray.

    Raises:
        SettingError: If a number is out of range.
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
            count: Number N of samples.
            channels: Number of channels of the images; only with three there are saturation and hue.
            generator: Source of random numbers.
        """
        has_color = channels == 3
        strengths = {k: s for k, s in self.strengths.items() if s and self.prob and (has_color or k != SATURATION)}
        changes = len(strengths)
        # The time of each change and its factor; and the time of the shift of hue, its size, whether the image becomes
        # gray, and whether it is jittered.
        numbers = torch.rand(2 * changes + 4, count, generator=generator)
        when, others = numbers[:changes], numbers[changes : 2 * changes]
        hue_when, turn, gray, any_jitter = numbers[-4:]
        is_jittered = any_jitter < self.prob
        order = when.argsort(0)  # of random numbers, so every order has the same probability
        spread = torch.tensor(list(strengths.values())).view(-1, 1)
        low = (1 - spread).clamp(min=0)
        factors = torch.where(is_jittered, (low + (1 + spread - low) * others).gather(0, order), 1.0)
        kinds = torch.tensor(list(strengths), dtype=torch.float32)[order] if changes else order.float()
        hue_at = None
        if has_color and self.hue and self.prob:
            # Every change has two rounds, before and after the shift of hue, with factor 1 in one of them.
            hue_at = changes
            is_before = when.gather(0, order) < hue_when
            factors = torch.cat((torch.where(is_before, factors, 1.0), torch.where(is_before, 1.0, factors)))
            kinds = torch.cat((kinds, kinds))
        if has_color and self.grayscale_prob:
            kinds = torch.cat((kinds, torch.full((1, count), float(SATURATION))))
            factors = torch.cat((factors, (gray >= self.grayscale_prob).float().unsqueeze(0)))
        turns = torch.where(is_jittered, self.hue * (2 * turn - 1), 0.0)
        return JitterDraw(torch.cat((kinds, factors, turns.unsqueeze(0))), len(kinds), hue_at)
