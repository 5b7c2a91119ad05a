"""Color jitter: the draw for a batch, and its application."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_reg.functional.batch.color import BRIGHTNESS, CONTRAST, SATURATION, jitter_colors_
from lightning_reg.settings import check_range

__all__ = ["ColorJitter", "JitterDraw"]


@dataclass(frozen=True)
class JitterDraw:
    """What was drawn for one batch.

    Attributes:
        rows: (2 · rounds + 1, N) on the host: which change each round is to an image, its factor, the turn of its hue.
        rounds: How many changes of brightness, contrast and saturation there are, the loss of colors included.
        hue_at: Before which round hues are turned; None where they aren't.
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
    """Draws changes of brightness, contrast, saturation and hue, and the order of them, for every sample.

    Args:
        brightness: Factors are within 1 ± this, and not below 0; at least 0, as those of contrast and saturation.
        hue: Hues are turned by up to this part of a circle to either side, in [0, 0.5].
        grayscale_prob: Probability that an image loses its colors, in [0, 1].
        prob: Probability that an image is jittered at all, in [0, 1]; it may lose its colors all the same.

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
            channels: Channels of the images; only three have saturation and hue.
            generator: Where random numbers come from.
        """
        has_color = channels == 3
        strengths = {k: s for k, s in self.strengths.items() if s and self.prob and (has_color or k != SATURATION)}
        changes = len(strengths)
        # When each change comes and its factor; and when the hue is turned, how far, whether colors go, and whether
        # there is any jitter.
        numbers = torch.rand(2 * changes + 4, count, generator=generator)
        when, others = numbers[:changes], numbers[changes : 2 * changes]
        hue_when, turn, gray, any_jitter = numbers[-4:]
        is_jittered = any_jitter < self.prob
        order = when.argsort(0)  # of random numbers: every order has the same probability
        spread = torch.tensor(list(strengths.values())).view(-1, 1)
        low = (1 - spread).clamp(min=0)
        factors = torch.where(is_jittered, (low + (1 + spread - low) * others).gather(0, order), 1.0)
        kinds = torch.tensor(list(strengths), dtype=torch.float32)[order] if changes else order.float()
        hue_at = None
        if has_color and self.hue and self.prob:
            # Every change has two rounds, one before the hue is turned and one after it; in the other nothing happens.
            hue_at = changes
            is_before = when.gather(0, order) < hue_when
            factors = torch.cat((torch.where(is_before, factors, 1.0), torch.where(is_before, 1.0, factors)))
            kinds = torch.cat((kinds, kinds))
        if has_color and self.grayscale_prob:
            kinds = torch.cat((kinds, torch.full((1, count), float(SATURATION))))
            factors = torch.cat((factors, (gray >= self.grayscale_prob).float().unsqueeze(0)))
        turns = torch.where(is_jittered, self.hue * (2 * turn - 1), 0.0)
        return JitterDraw(torch.cat((kinds, factors, turns.unsqueeze(0))), len(kinds), hue_at)
