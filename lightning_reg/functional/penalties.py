r"""Penalties on weights: their value, and their gradient added in place.

Both stand here because a training step needs only the gradient: adding it directly costs a fraction of what
differentiating the value through autograd costs, and needs no graph.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["add_l2_gradient_", "l2_penalty"]


def l2_penalty(weights: Sequence[Tensor], strength: float) -> Tensor:
    r"""Half the squared Euclidean norm of all weights, times the strength.

    .. math:: P(w) = \frac{\lambda}{2} \sum_i w_i^2

    Args:
        weights: Tensors of any shapes, on one device.
        strength: λ, dimensionless, at least 0.

    Returns:
        A scalar tensor, differentiable in the weights.

    Reference:
        Anders Krogh, John A. Hertz: A Simple Weight Decay Can Improve Generalization, NeurIPS 1991.

    >>> l2_penalty([torch.tensor([3.0, 4.0])], 0.1)
    tensor(1.2500)
    """
    # At least in float32: a sum of squares in 16 bits has lost its last digits.
    norms = torch.stack(
        [torch.linalg.vector_norm(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) for weight in weights]
    )
    return strength / 2 * norms.square().sum()


@torch.no_grad()
def add_l2_gradient_(gradients: Sequence[Tensor], weights: Sequence[Tensor], strength: float | Tensor) -> None:
    r"""Adds the gradient of :func:`l2_penalty` to ``gradients``, in place.

    .. math:: g_i \leftarrow g_i + \lambda w_i

    A plain gradient step of size η then multiplies every weight by (1 − ηλ) beside following the loss.

    Args:
        gradients: What is added to; shapes and dtypes of ``weights``.
        weights: The weights that are penalised.
        strength: λ; a scalar tensor is used where it lies, without a transfer to the host.

    >>> gradient, weight = torch.zeros(2), torch.tensor([3.0, 4.0])
    >>> add_l2_gradient_([gradient], [weight], 0.1)
    >>> gradient
    tensor([0.3000, 0.4000])
    """
    if isinstance(strength, Tensor):
        scaled = torch._foreach_mul(list(weights), strength)
        torch._foreach_add_(list(gradients), scaled)
    else:
        torch._foreach_add_(list(gradients), list(weights), alpha=strength)
