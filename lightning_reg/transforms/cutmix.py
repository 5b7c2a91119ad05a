"""CutMix: a box of one image pasted into another."""

from functools import partial
from random import Random

from torch import Tensor
from typing_extensions import override

from lightning_reg.functional.batch.boxes import Box, random_box
from lightning_reg.functional.batch.mixing import paste_from_previous
from lightning_reg.settings import check_flags, check_range
from lightning_reg.transforms.mixing import Draw, Mixing, on_device, spatial_size

__all__ = ["CutMix"]


class CutMix(Mixing):
    """Pastes a box of another image into every image, and mixes their targets by area.

    For images (N, C, H, W), or anything whose last two dimensions are spatial. For signals, whose height or width is 1,
    a segment is pasted. Targets are as for ``Mixup``, but where each pixel has one (N, ..., H, W), those of the box are
    pasted with it: class indices, one-hot maps or numbers.

    Args:
        alpha: Parameter of the Beta(alpha, alpha) distribution of the part that stays; at least 0. The box covers the
            rest before it is clipped at the border; at 0 there is none.
        prob: Probability that a batch is mixed at all, in [0, 1].
        per_sample: Whether every image draws its own box, rather than one for the whole batch.

    Raises:
        SettingError: If an argument is out of range.

    Deviates from the paper: a box that covers more than half of an image stays, and the rest is pasted, so that each
    image's own label stays the dominant one. As in the paper's code, the weight is the area that was pasted, after
    the box was clipped at the border.

    Reference:
        Sangdoo Yun, Dongyoon Han, Seong Joon Oh, Sanghyuk Chun, Junsuk Choe, Youngjoon Yoo: CutMix: Regularization
        Strategy to Train Strong Classifiers with Localizable Features, ICCV 2019, arXiv:1905.04899.

    >>> import torch
    >>> images, targets = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 8, 8), torch.eye(2)
    >>> mixed, mixed_targets = CutMix()(images, targets, stream=Random(1))
    >>> bool(mixed[0].mean() == mixed_targets[0, 1])
    True
    """

    input_kind = "images"
    pastes = True

    def __init__(self, *, alpha: float = 1.0, prob: float = 1.0, per_sample: bool = False) -> None:
        check_range("alpha", alpha, low=0)
        check_range("prob", prob, low=0, high=1)
        self.alpha = alpha
        self.prob = prob
        self.per_sample = per_sample
        check_flags(self)

    @override
    def draw(self, inputs: Tensor, *, stream: Random) -> Draw | None:
        height, width = spatial_size(inputs, type(self).__name__)
        if stream.random() >= self.prob or self.alpha == 0:
            return None
        boxes = [self._box(height, width, stream) for _ in range(len(inputs) if self.per_sample else 1)]
        areas = [(bottom - top) * (right - left) / (height * width) for top, bottom, left, right in boxes]
        minor = on_device([min(area, 1 - area) for area in areas], inputs)
        minor = minor if self.per_sample else minor[0]
        return Draw(partial(paste_from_previous, boxes=boxes), minor, pastes=True)

    def _box(self, height: int, width: int, stream: Random) -> Box:
        share = 1 - stream.betavariate(self.alpha, self.alpha)
        side = share if 1 in (height, width) else share**0.5
        sides = [1 if length == 1 else int(length * side) for length in (height, width)]
        return random_box(stream, *sides, within=(height, width))
