"""Adversarial inputs within a box: the fast gradient sign method, and projected gradient descent."""

import torch
from torch import Tensor

__all__ = ["random_start", "range_of", "sign_step", "within"]


def sign_step(inputs: Tensor, gradient: Tensor, original: Tensor, *, eps: float, step_size: float) -> Tensor:
    r"""Moves inputs by a step along the sign of the loss's gradient, and back into the box around the original ones.

    .. math:: x \leftarrow \min(\max(x + \alpha \operatorname{sign} \nabla_x L,\; x_0 - \epsilon),\; x_0 + \epsilon)

    From x₀, with α = ε, it is the fast gradient sign method; repeated, projected gradient descent.

    Args:
        inputs: (N, ...), inputs x.
        gradient: Gradient of the loss by x, of the same shape.
        original: Original inputs x₀, of the same shape.
        eps: Largest change ε of an entry, at least 0.
        step_size: Step size α, at least 0.

    Returns:
        A tensor of the same shape.

    Reference:
        Ian J. Goodfellow, Jonathon Shlens, Christian Szegedy: Explaining and Harnessing Adversarial Examples, ICLR
        2015, arXiv:1412.6572. Aleksander Madry, Aleksandar Makelov, Ludwig Schmidt, Dimitris Tsipras, Adrian Vladu:
        Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018, arXiv:1706.06083.

    >>> start = torch.tensor([[0.0, 1.0, 2.0]])
    >>> sign_step(start, torch.tensor([[0.3, -0.1, 0.0]]), start, eps=0.5, step_size=0.5)
    tensor([[0.5000, 0.5000, 2.0000]])
    """
    moved = torch.add(inputs, gradient.sign(), alpha=step_size)
    return torch.clamp(moved, original - eps, original + eps)


def within(inputs: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Clamps inputs to a range.

    Args:
        inputs: (N, ...).
        low: Smallest values: a number, or a tensor that broadcasts to the inputs, such as from :func:`range_of`.
        high: Largest values, likewise.

    >>> within(torch.tensor([[-3.0, 0.5]]), torch.tensor([[-1.0, 0.0]]), 0.4)
    tensor([[-1.0000,  0.4000]])
    """
    low, high = torch.as_tensor(low).to(inputs), torch.as_tensor(high).to(inputs)
    return torch.clamp(inputs, low, high)


def range_of(inputs: Tensor) -> Tensor:
    """Returns the range of inputs: per column of a table, per channel of images, else over all entries.

    Args:
        inputs: (N, F), (N, C, H, W) or (N, C, D, H, W); of other shapes all entries have one range.

    Returns:
        (2, 1, F, ...): smallest and largest values, which broadcast to the inputs.

    >>> range_of(torch.tensor([[0.0, 5.0], [1.0, -5.0]]))
    tensor([[[ 0., -5.]],
    <BLANKLINE>
            [[ 1.,  5.]]])
    """
    apart = 1 if inputs.ndim in (2, 4, 5) else inputs.ndim
    over = [dimension for dimension in range(inputs.ndim) if dimension != apart]
    return torch.stack((inputs.amin(over, keepdim=True), inputs.amax(over, keepdim=True)))


def random_start(inputs: Tensor, eps: float, *, generator: torch.Generator) -> Tensor:
    r"""Moves inputs to a random position in the box around them, :math:`x + U(-\epsilon, \epsilon)`.

    Args:
        inputs: (N, ...), inputs x.
        eps: Half the side ε of the box, at least 0.
        generator: Source of random numbers, on the host.

    >>> moved = random_start(torch.zeros(4, 3), 0.1, generator=torch.Generator().manual_seed(0))
    >>> bool((moved.abs() <= 0.1).all())
    True
    """
    drawn = torch.rand(inputs.shape, generator=generator).mul_(2 * eps).sub_(eps)
    return inputs + drawn.to(inputs, non_blocking=True)
