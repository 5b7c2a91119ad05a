"""Mixup for some batches, CutMix for the others."""

from random import Random

from torch import Tensor
from typing_extensions import override

from lightning_reg.settings import check_flags, check_range
from lightning_reg.transforms.cutmix import CutMix
from lightning_reg.transforms.mixing import Draw, Mixing, spatial_size
from lightning_reg.transforms.mixup import Mixup

__all__ = ["MixupOrCutMix"]


class MixupOrCutMix(Mixing):
    """Mixes each batch by ``Mixup`` or by ``CutMix``, at random.

    Targets are as for these.

    Args:
        mixup_alpha: ``alpha`` of Mixup, at least 0; at 0, its batches stay as they are.
        cutmix_alpha: ``alpha`` of CutMix, at least 0; at 0, its batches stay as they are.
        switch_prob: Probability of CutMix rather than Mixup, in [0, 1].
        prob: Probability that a batch is mixed at all, in [0, 1].
        per_sample: Whether every sample draws its own weight or box.

    Raises:
        SettingError: If an argument is out of range.

    Reference:
        Hugo Touvron et al.: Training data-efficient image transformers & distillation through attention, ICML 2021,
        arXiv:2012.12877, trains so; the two are those of ``Mixup`` and ``CutMix``.

    >>> import torch
    >>> mixed, targets = MixupOrCutMix()(torch.rand(4, 3, 8, 8), torch.eye(4), stream=Random(0))
    >>> bool(targets.diagonal().min() >= 0.5)
    True
    """

    input_kind = "images"

    def __init__(
        self,
        *,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        switch_prob: float = 0.5,
        prob: float = 1.0,
        per_sample: bool = False,
    ) -> None:
        check_range("mixup_alpha", mixup_alpha, low=0)
        check_range("cutmix_alpha", cutmix_alpha, low=0)
        check_range("switch_prob", switch_prob, low=0, high=1)
        check_range("prob", prob, low=0, high=1)
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.switch_prob = switch_prob
        self.prob = prob
        self.per_sample = per_sample
        check_flags(self)
        self._mixup = Mixup(alpha=mixup_alpha, per_sample=per_sample)
        self._cutmix = CutMix(alpha=cutmix_alpha, per_sample=per_sample)

    @override
    def draw(self, inputs: Tensor, *, stream: Random) -> Draw | None:
        spatial_size(inputs, type(self).__name__)  # an error now, rather than at the first batch for CutMix
        if stream.random() >= self.prob:
            return None
        chosen = self._cutmix if stream.random() < self.switch_prob else self._mixup
        return chosen.draw(inputs, stream=stream)
