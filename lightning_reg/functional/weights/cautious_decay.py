"""Cautious weight decay: only where it agrees with the optimizer's step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.functional.blocks import portions

__all__ = ["corrected_rate", "decay_cautiously_", "decay_timescale"]


@torch.no_grad()
def decay_cautiously_(weights: Sequence[Tensor], before: Sequence[Tensor], share: float | Tensor) -> None:
    r"""Shrinks weights where the last step moved them toward zero, or not at all, in place.

    .. math:: x \leftarrow x' - \eta \lambda \, \mathbb{1}[(x - x') \, x \ge 0] \, x

    Here x is the weight before the step and x' the one after it.

    Args:
        weights: Weights x' after the step, real tensors of any shapes.
        before: Weights x before the step, of the same shapes.
        share: Share ηλ to shrink by; a scalar tensor isn't moved to the host.

    Reference:
        Lizhang Chen et al.: Cautious Weight Decay, 2025, arXiv:2510.12402.

    >>> weight = torch.tensor([0.9, 1.1])
    >>> decay_cautiously_([weight], [torch.tensor([1.0, 1.0])], 0.5)
    >>> weight
    tensor([0.4000, 1.1000])
    """
    for values, old in portions(weights, before):
        # Only the step's sign: in 16 bits a product of two small numbers would be 0, and count as agreement.
        signs = torch._foreach_sub(old, values)
        torch._foreach_sign_(signs)
        disagree = torch._foreach_mul(signs, old)
        torch._foreach_clamp_max_(disagree, 0)
        # x where they agree, and x - s s x = 0 where they don't: on a CPU selection by a mask takes longer.
        decay = torch._foreach_addcmul(old, signs, disagree, value=-1)
        torch._foreach_mul_(decay, share)
        torch._foreach_sub_(values, decay)


def corrected_rate(rate: float | Tensor, highest: float | Tensor) -> float | Tensor:
    r"""Returns the factor of weight decay in place of the learning rate, :math:`\eta^2 / \eta_\text{max}`.

    Weights followed by a normalization settle where gradients have :math:`\sqrt{2 \lambda / \eta}` times their norm. So
    gradients grow as a schedule's rate falls, unless λ falls with it.

    Args:
        rate: Learning rate η of this step.
        highest: Highest learning rate η_max of the whole schedule, at least η.

    Returns:
        The factor; 0 where both rates are 0.

    Reference:
        Aaron Defazio: Why Gradients Rapidly Increase Near the End of Training, 2025, arXiv:2506.02285.

    >>> corrected_rate(0.5, 1.0)
    0.25
    """
    if isinstance(highest, Tensor):
        return torch.where(highest > 0, rate * (rate / highest), torch.zeros_like(highest))
    return rate * (rate / highest) if highest else 0.0


def decay_timescale(rate: float, weight: float, steps: float) -> float:
    r"""Returns the number of epochs over which decoupled weight decay averages updates, :math:`1 / (\eta \lambda M)`.

    Args:
        rate: Learning rate η, above 0.
        weight: Weight decay λ, above 0.
        steps: Number M of optimizer steps in an epoch.

    Reference:
        Xi Wang, Laurence Aitchison: How to set AdamW's weight decay as you scale model and dataset size, 2024,
        arXiv:2405.13698.

    >>> round(decay_timescale(1e-3, 0.1, 500), 3)
    20.0
    """
    return 1 / (rate * weight * steps)
