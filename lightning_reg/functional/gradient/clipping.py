"""Gradient clipping: by a common factor, entry by entry, or unit by unit.

Nothing here synchronizes with the device; thresholds may be tensors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.functional.norms import unit_norms

__all__ = ["clip_adaptively_", "clip_by_value_", "scale_", "shrinking_factor"]

Number = float | Tensor


def shrinking_factor(norm: Tensor, target: Number) -> Tensor:
    r"""Returns the factor that makes the norm of gradients at most ``target``.

    .. math:: c = \min\left(1, \frac{\tau}{\lVert g \rVert + 10^{-6}}\right)

    Args:
        norm: Norms ‖g‖, of any shape.
        target: Largest norm τ, at least 0.

    Returns:
        A tensor like ``norm``. The 1e-6 is torch's, so that results equal ``clip_grad_norm_``.

    Reference:
        Razvan Pascanu, Tomas Mikolov, Yoshua Bengio: On the Difficulty of Training Recurrent Neural Networks, ICML
        2013, arXiv:1211.5063.

    >>> shrinking_factor(torch.tensor([0.5, 4.0]), 1.0)
    tensor([1.0000, 0.2500])
    """
    return (target / (norm + 1e-6)).clamp(max=1.0)


@torch.no_grad()
def scale_(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiplies all gradients by one factor, in place.

    Args:
        gradients: Tensors of any shapes and dtypes.
        factor: Scalar tensor. On a CPU, where reading it costs nothing, a factor of 1 is skipped.

    >>> gradient = torch.tensor([3.0, 4.0])
    >>> scale_([gradient], torch.tensor(0.5))
    >>> gradient
    tensor([1.5000, 2.0000])
    """
    if factor.device.type != "cpu" or factor != 1:
        torch._foreach_mul_(list(gradients), factor)


@torch.no_grad()
def clip_by_value_(gradients: Sequence[Tensor], max_value: Number, *, keep_nonfinite: bool = False) -> None:
    r"""Clamps every entry to ±max_value, in place.

    .. math:: g_i \leftarrow \max(-v, \min(v, g_i))

    Args:
        gradients: Real tensors of any shapes; complex numbers have no order.
        max_value: Bound v, at least 0; a scalar tensor isn't moved to the host.
        keep_nonfinite: Whether to keep infinities, for a gradient scaler that checks for them later.

    >>> gradient = torch.tensor([3.0, -4.0, 0.5])
    >>> clip_by_value_([gradient], 1.0)
    >>> gradient
    tensor([ 1.0000, -1.0000,  0.5000])
    """
    if isinstance(max_value, Tensor) or keep_nonfinite:
        for gradient in gradients:
            bound = torch.as_tensor(max_value, dtype=gradient.dtype, device=gradient.device)
            clipped = gradient.clamp(-bound, bound)
            gradient.copy_(torch.where(gradient.isinf(), gradient, clipped) if keep_nonfinite else clipped)
    else:
        torch._foreach_clamp_max_(list(gradients), max_value)
        torch._foreach_clamp_min_(list(gradients), -max_value)


@torch.no_grad()
def clip_adaptively_(
    gradients: Sequence[Tensor], units: Sequence[Tensor], clip_factor: Number, *, eps: float = 1e-3, scale: Number = 1.0
) -> Tensor:
    r"""Clips the norm of every unit's gradient to a multiple of the norm of its weights, in place.

    .. math:: g_u \leftarrow g_u \min\left(1, \lambda \frac{\max(\lVert w_u \rVert, \epsilon)}{\lVert g_u \rVert}
        \right)

    A unit is a slice along the first dimension; a tensor of one dimension is one unit. The floor ε lets
    weights that start at zero learn.

    Args:
        gradients: Gradients, changed in place.
        units: Weights, of the same shapes.
        clip_factor: Largest ratio λ of gradient norm to weight norm, positive.
        eps: Smallest norm ε of weights, positive.
        scale: Factor that a gradient scaler has left in the gradients.

    Returns:
        A scalar tensor of bools: whether anything was clipped.

    Reference:
        Andrew Brock, Soham De, Samuel L. Smith, Karen Simonyan: High-Performance Large-Scale Image Recognition Without
        Normalization, ICML 2021, arXiv:2102.06171.

    >>> gradient, weight = torch.tensor([[3.0, 4.0], [0.0, 0.001]]), torch.tensor([[6.0, 8.0], [1.0, 0.0]])
    >>> clip_adaptively_([gradient], [weight], 0.01)
    tensor(True)
    >>> gradient
    tensor([[0.0600, 0.0800],
            [0.0000, 0.0010]])
    """
    clipped = []
    for gradient, unit in zip(gradients, units, strict=True):
        norms = unit_norms(gradient)
        longest = unit_norms(unit).clamp(min=eps).mul_(clip_factor * scale)
        beyond = norms > longest
        clipped.append((beyond & norms.isfinite()).any())
        # On a CPU the check is free, and mostly there is nothing to do.
        if gradient.device.type != "cpu" or beyond.any():
            gradient.mul_(torch.where(beyond, longest / norms, 1).to(gradient.dtype))
    return torch.stack(clipped).any()
