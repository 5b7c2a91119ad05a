"""Penalties on the gradient of a loss, or the Jacobian of outputs, by the inputs. They need a graph down to these."""

import math

import torch
from torch import Tensor

from lightning_reg.functional.autograd import gradient_by_inputs

__all__ = ["input_gradient_penalty", "jacobian_penalty", "random_directions", "unit_directions"]


def input_gradient_penalty(loss: Tensor, inputs: Tensor, strength: float) -> Tensor:
    r"""The mean squared norm of the gradient of each sample's loss by its input, times the strength.

    .. math:: P = \frac{\lambda}{N} \sum_n \left\| \nabla_{x_n} \ell_n \right\|^2, \qquad
        L = \frac{1}{N} \sum_n \ell_n

    Args:
        loss: Loss L, a mean over samples.
        inputs: (N, ...), requiring a gradient.
        strength: Strength λ, at least 0.

    Returns:
        A differentiable scalar tensor.

    Raises:
        SettingError: If the loss doesn't depend on the inputs.

    Reference:
        Harris Drucker, Yann Le Cun: Improving Generalization Performance Using Double Backpropagation, 1992. Andrew
        Ross, Finale Doshi-Velez: Improving the Adversarial Robustness and Interpretability of Deep Neural Networks by
        Regularizing Their Input Gradients, AAAI 2018, arXiv:1711.09404.

    >>> inputs = torch.tensor([[1.0], [2.0]], requires_grad=True)
    >>> float(input_gradient_penalty((3 * inputs).mean(), inputs, 1.0))
    9.0
    """
    return strength * len(inputs) * gradient_by_inputs(loss, inputs, create_graph=True).square().sum()


def jacobian_penalty(outputs: Tensor, inputs: Tensor, strength: float, *, directions: Tensor) -> Tensor:
    r"""Half the mean squared Frobenius norm of each sample's Jacobian, times the strength.

    .. math:: P = \frac{\lambda}{2N} \sum_n \| J_n \|_F^2, \qquad
        \| J_n \|_F^2 \approx \frac{1}{K} \sum_k \left\| v_{kn}^\top J_n \right\|^2

    Args:
        outputs: (N, C) or (N, C, ...).
        inputs: (N, ...), requiring a gradient.
        strength: Strength λ, at least 0.
        directions: (K, N, C, ...), directions v: from :func:`random_directions`, for an unbiased estimate, or from
            :func:`unit_directions`, for the exact value.

    Returns:
        A differentiable scalar tensor.

    Raises:
        SettingError: If the outputs don't depend on the inputs.

    Reference:
        Judy Hoffman, Daniel A. Roberts, Sho Yaida: Robust Learning with Jacobian Regularization, 2019,
        arXiv:1908.02729.

    >>> inputs = torch.ones(1, 4, requires_grad=True)
    >>> float(jacobian_penalty(3 * inputs, inputs, 1.0, directions=unit_directions(inputs)))
    18.0
    """
    total = sum(
        gradient_by_inputs((outputs * direction).sum(), inputs, create_graph=True).square().sum()
        for direction in directions
    )
    return strength / (2 * len(directions) * len(inputs)) * torch.as_tensor(total)


def random_directions(outputs: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    r"""Draws random directions in the space of the outputs' classes, of norm :math:`\sqrt{C}`.

    Args:
        outputs: (N, C) or (N, C, ...).
        count: Number K of directions for each sample.
        generator: Source of random numbers, on the host.

    Returns:
        (K, N, C, ...), float32, on the outputs' device.

    >>> random_directions(torch.zeros(2, 4), 3, generator=torch.Generator()).norm(dim=2).mean()
    tensor(2.)
    """
    drawn = torch.randn((count, *outputs.shape), generator=generator)
    lengths: Tensor = torch.linalg.vector_norm(drawn, dim=2, keepdim=True)
    return (drawn * (math.sqrt(outputs.shape[1]) / lengths)).to(outputs.device, non_blocking=True)


def unit_directions(outputs: Tensor) -> Tensor:
    r"""Returns the direction of each class, of norm :math:`\sqrt{C}`.

    Args:
        outputs: (N, C).

    >>> unit_directions(torch.zeros(1, 4)).shape
    torch.Size([4, 1, 4])
    """
    classes = outputs.shape[1]
    units = torch.eye(classes, device=outputs.device) * math.sqrt(classes)
    return units.unsqueeze(1).expand(classes, *outputs.shape)
