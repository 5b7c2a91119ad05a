"""Transforms that mix the samples of a batch with one another."""

from abc import ABC, abstractmethod
from random import Random

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg.functional.mixing import mix_with_previous
from lightning_reg.settings import check_range

__all__ = ["Mixing", "Mixup"]


class Mixing(ABC):
    """What any mixing transform is: a function of a batch and a stream of random numbers."""

    @abstractmethod
    def __call__(self, inputs: Tensor, targets: Tensor, *, stream: Random) -> tuple[Tensor, Tensor]:
        """Returns the mixed inputs and targets; neither argument is changed.

        Args:
            inputs: (N, ...), of a floating dtype.
            targets: (N, ...), of a floating dtype.
            stream: Where random numbers come from.
        """


class Mixup(Mixing):
    """Blends every sample and its target with another one's.

    Targets are what is interpolated: probabilities (N, C), several labels (N, C) or values (N,) or (N, D). Class
    indices have to be made probabilities first, as the data module does.

    Args:
        alpha: Of the Beta(alpha, alpha) that the weight of the other sample is drawn from; above 0. At 1 all weights
            are equally likely, toward 0 nearly all samples stay as they are.
        prob: Probability that a batch is mixed at all, in [0, 1].
        per_sample: Whether every sample draws a weight of its own, rather than one for the whole batch.

    Deviates from the paper: the minor weight is at most 0.5 (the two samples swap roles above it), so that each
    sample's own label stays the dominant one and training accuracy keeps its meaning.

    Reference:
        Hongyi Zhang, Moustapha Cissé, Yann N. Dauphin, David Lopez-Paz: mixup: Beyond Empirical Risk Minimization,
        ICLR 2018, arXiv:1710.09412.

    >>> mix = Mixup(alpha=1.0)
    >>> inputs, targets = mix(torch.eye(4), torch.eye(4), stream=Random(0))
    >>> bool((targets.sum(1) == 1).all())
    True
    """

    def __init__(self, *, alpha: float = 1.0, prob: float = 1.0, per_sample: bool = False) -> None:
        check_range("alpha", alpha, low=0, low_open=True)
        check_range("prob", prob, low=0, high=1)
        self.alpha = alpha
        self.prob = prob
        self.per_sample = per_sample

    @override
    def __call__(self, inputs: Tensor, targets: Tensor, *, stream: Random) -> tuple[Tensor, Tensor]:
        if len(inputs) < 2 or stream.random() >= self.prob:
            return inputs, targets
        weights = [stream.betavariate(self.alpha, self.alpha) for _ in range(len(inputs) if self.per_sample else 1)]
        # One transfer from the host, which knows no wait; a scalar where one weight serves the batch.
        minor = torch.tensor([min(weight, 1 - weight) for weight in weights]).to(inputs.device, non_blocking=True)
        minor = minor if self.per_sample else minor[0]
        return mix_with_previous(inputs, minor), mix_with_previous(targets, minor)

    def __repr__(self) -> str:
        return f"Mixup(alpha={self.alpha}, prob={self.prob}, per_sample={self.per_sample})"
