"""Weight decay that agrees with the optimizer's step."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["decay_cautiously_"]


@torch.no_grad()
def decay_cautiously_(weights: Sequence[Tensor], before: Sequence[Tensor], share: float | Tensor) -> None:
    r"""Shrinks weights where the step that was just made moved them toward zero, or not at all, in place.

    .. math:: x \leftarrow x' - \eta \lambda \, \mathbb{1}[(x - x') \, x \ge 0] \, x

    Here x is the weight before the step and x' after it.

    Args:
        weights: x', real tensors of any shapes.
        before: x, of the same shapes.
        share: ηλ; a scalar tensor is used where it lies, without a transfer to the host.

    Reference:
        Lizhang Chen et al.: Cautious Weight Decay, 2025, arXiv:2510.12402.

    >>> weight = torch.tensor([0.9, 1.1])
    >>> decay_cautiously_([weight], [torch.tensor([1.0, 1.0])], 0.5)
    >>> weight
    tensor([0.4000, 1.1000])
    """
    # Of the step its sign alone: in 16 bits a product of two small numbers would be 0, and count as agreement.
    agrees = torch._foreach_sub(list(before), list(weights))
    torch._foreach_sign_(agrees)
    torch._foreach_mul_(agrees, list(before))
    decay = [torch.where(agreement >= 0, old, 0) for agreement, old in zip(agrees, before, strict=True)]
    torch._foreach_mul_(decay, share)
    torch._foreach_sub_(list(weights), decay)
