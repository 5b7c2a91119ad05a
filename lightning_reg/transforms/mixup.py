"""Mixup: samples blended with one another."""

from functools import partial
from random import Random

from torch import Tensor
from typing_extensions import override

from lightning_reg.functional.batch.mixing import mix_with_previous
from lightning_reg.settings import check_flags, check_range
from lightning_reg.transforms.mixing import Draw, Mixing, on_device

__all__ = ["Mixup"]


class Mixup(Mixing):
    """Blends every sample and its target with another one's.

    For inputs of any shape. Targets are interpolated: probabilities (N, C), several labels (N, C) or values (N,) or
    (N, D). Class indices have to be converted to probabilities first, as the data modules do; ``BatchMixing`` leaves
    them as they are and interpolates the loss.

    Args:
        alpha: Parameter of the Beta(alpha, alpha) distribution of the other sample's weight; at least 0. At 1 all
            weights are equally likely, toward 0 nearly all samples stay as they are, at 0 all of them.
        prob: Probability that a batch is mixed at all, in [0, 1].
        per_sample: Whether every sample draws its own weight, rather than one for the whole batch.

    Raises:
        SettingError: If an argument is out of range.

    Deviates from the paper: the minor weight is at most 0.5 (the two samples swap roles above it), so that each
    sample's own label stays the dominant one and training accuracy keeps its meaning.

    Reference:
        Hongyi Zhang, Moustapha Cissé, Yann N. Dauphin, David Lopez-Paz: mixup: Beyond Empirical Risk Minimization,
        ICLR 2018, arXiv:1710.09412.

    >>> import torch
    >>> mix = Mixup(alpha=1.0)
    >>> inputs, targets = mix(torch.eye(4), torch.eye(4), stream=Random(0))
    >>> bool((targets.sum(1) == 1).all())
    True
    """

    def __init__(self, *, alpha: float = 1.0, prob: float = 1.0, per_sample: bool = False) -> None:
        check_range("alpha", alpha, low=0)
        check_range("prob", prob, low=0, high=1)
        self.alpha = alpha
        self.prob = prob
        self.per_sample = per_sample
        check_flags(self)

    @override
    def draw(self, inputs: Tensor, *, stream: Random) -> Draw | None:
        if stream.random() >= self.prob or self.alpha == 0:
            return None
        weights = [stream.betavariate(self.alpha, self.alpha) for _ in range(len(inputs) if self.per_sample else 1)]
        minor = on_device([min(weight, 1 - weight) for weight in weights], inputs)
        minor = minor if self.per_sample else minor[0]
        return Draw(partial(mix_with_previous, minor_weight=minor), minor)
