"""Gradient noise."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.functional.bernoulli import random_signs
from lightning_reg.functional.blocks import portions

__all__ = ["add_noise_", "add_signs_"]

Number = float | Tensor


@torch.no_grad()
def add_noise_(gradients: Sequence[Tensor], deviation: Number, generator: torch.Generator) -> None:
    r"""Adds independent Gaussian noise to every entry, in place.

    .. math:: g_i \leftarrow g_i + \epsilon_i, \qquad \epsilon_i \sim \mathcal{N}(0, \sigma^2)

    Args:
        gradients: Tensors on the generator's device. For complex entries, σ² is shared by the two parts.
        deviation: Standard deviation σ, at least 0, in the units of the gradients.
        generator: Source of random numbers.

    Reference:
        Arvind Neelakantan, Luke Vilnis, Quoc V. Le, Ilya Sutskever, Lukasz Kaiser, Karol Kurach, James Martens: Adding
        Gradient Noise Improves Learning for Very Deep Networks, 2015, arXiv:1511.06807.

    >>> gradient = torch.zeros(10_000)
    >>> add_noise_([gradient], 0.5, torch.Generator().manual_seed(0))
    >>> abs(gradient.std().item() - 0.5) < 0.02
    True
    """
    for gradient in gradients:
        noise = torch.empty_like(gradient).normal_(generator=generator)
        gradient.add_(noise.mul_(deviation))


@torch.no_grad()
def add_signs_(gradients: Sequence[Tensor], deviation: Number, generator: torch.Generator) -> None:
    r"""Adds σ or −σ to every entry, independently and with equal probability, in place (Rademacher noise).

    .. math:: g_i \leftarrow g_i + \sigma \epsilon_i, \qquad P(\epsilon_i = 1) = P(\epsilon_i = -1) = 1/2

    The first three moments are those of Gaussian noise, at a fraction of the random numbers.

    Args:
        gradients: Tensors on the generator's device. For complex entries, σ² is shared by the two parts.
        deviation: Standard deviation σ, at least 0, in the units of the gradients.
        generator: Source of random numbers.

    >>> gradient = torch.zeros(4)
    >>> add_signs_([gradient], 0.5, torch.Generator().manual_seed(0))
    >>> gradient.abs()
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    for gradient in gradients:
        parts = torch.view_as_real(gradient) if gradient.is_complex() else gradient
        size = deviation / math.sqrt(2) if gradient.is_complex() else deviation
        if parts.device.type == "cpu":
            signed = torch.as_tensor(size, dtype=parts.dtype)
            for ([piece],) in portions([parts]):
                signs = random_signs(piece.numel(), piece.dtype, generator).view(piece.shape)
                piece.add_(torch.copysign(signed, signs))
        else:
            signs = torch.empty_like(parts).bernoulli_(0.5, generator=generator)
            parts.add_(signs.mul_(2).sub_(1).mul_(size))
