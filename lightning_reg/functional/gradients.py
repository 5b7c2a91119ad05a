r"""What is done to gradients between backward and the optimizer's step: clipping, noise, centralization.

Nothing here moves a number to the host, so a step on a GPU isn't held up; thresholds may be tensors.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.functional.bernoulli import bernoulli_int16

__all__ = [
    "add_noise_",
    "add_signs_",
    "centralize_",
    "clip_adaptively_",
    "clip_by_value_",
    "norms_of",
    "scale_",
    "shrinking_factor",
    "total_norm",
    "unit_norms",
]

Number = float | Tensor


def norms_of(gradients: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """Returns the norm of every tensor.

    Args:
        gradients: At least one, on one device.
        norm_type: Order of the norm; ``float("inf")`` for the largest absolute value.

    Returns:
        A tensor (len(gradients),), real and at least in float32; complex entries count by their absolute values.

    >>> norms_of([torch.tensor([3.0, 4.0]), torch.tensor([-2.0])])
    tensor([5., 2.])
    """
    # Sums of squares in 16 bits lose digits, and overflow in float16.
    dtype = functools.reduce(torch.promote_types, {gradient.dtype for gradient in gradients}, torch.float32)
    if dtype.is_complex:  # which real tensors among the others refuse
        return torch.stack([_norm(gradient, norm_type) for gradient in gradients])
    return torch.stack(torch._foreach_norm(list(gradients), norm_type, dtype=dtype))


def total_norm(norms: Tensor, norm_type: float = 2.0) -> Tensor:
    """Returns the norm of everything, from the norms of its parts.

    Args:
        norms: Norms of the parts, as :func:`norms_of` returns them.
        norm_type: Order of the norm.

    Returns:
        A scalar tensor.

    >>> total_norm(torch.tensor([3.0, 4.0]))
    tensor(5.)
    """
    total: Tensor = torch.linalg.vector_norm(norms, norm_type)
    return total


def shrinking_factor(norm: Tensor, target: Number) -> Tensor:
    r"""What gradients are multiplied by so that their norm is at most ``target``.

    .. math:: c = \min\left(1, \frac{\tau}{\lVert g \rVert + 10^{-6}}\right)

    Args:
        norm: ‖g‖, any shape.
        target: τ, at least 0.

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
        gradients: Of any shapes and dtypes.
        factor: A scalar tensor. On a CPU, where looking at it costs nothing, a factor of 1 leaves them alone.

    >>> gradient = torch.tensor([3.0, 4.0])
    >>> scale_([gradient], torch.tensor(0.5))
    >>> gradient
    tensor([1.5000, 2.0000])
    """
    if factor.device.type != "cpu" or factor != 1:
        torch._foreach_mul_(list(gradients), factor)


@torch.no_grad()
def clip_by_value_(gradients: Sequence[Tensor], max_value: Number, *, keep_nonfinite: bool = False) -> None:
    r"""Cuts every entry off at ±max_value, in place.

    .. math:: g_i \leftarrow \max(-v, \min(v, g_i))

    Args:
        gradients: Of any shapes, real: complex numbers have no order.
        max_value: v, at least 0; a scalar tensor is used where it lies.
        keep_nonfinite: Whether infinities stay, for a gradient scaler that looks for them later.

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
    r"""Shortens the gradient of every unit to a share of the length of the unit's weights, in place.

    .. math:: g_u \leftarrow g_u \min\left(1, \lambda \frac{\max(\lVert w_u \rVert, \epsilon)}{\lVert g_u \rVert}
        \right)

    A unit is what lies at one index of the first dimension; tensors of one dimension are one unit. The floor ε lets
    weights that start at zero learn.

    Args:
        gradients: Gradients, changed in place.
        units: The weights, of the same shapes.
        clip_factor: Largest ratio λ of gradient norm to weight norm, positive.
        eps: ε, positive, in the units of the weights.
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
        # On a CPU looking is free, and mostly there is nothing to do.
        if gradient.device.type != "cpu" or beyond.any():
            gradient.mul_(torch.where(beyond, longest / norms, 1).to(gradient.dtype))
    return torch.stack(clipped).any()


@torch.no_grad()
def add_noise_(gradients: Sequence[Tensor], deviation: Number, generator: torch.Generator) -> None:
    r"""Adds independent Gaussian noise to every entry, in place.

    .. math:: g_i \leftarrow g_i + \epsilon_i, \qquad \epsilon_i \sim \mathcal{N}(0, \sigma^2)

    Args:
        gradients: On the generator's device. Of a complex entry's noise, σ² is shared by its two parts.
        deviation: σ, at least 0, in the units of the gradients.
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

    The first three moments are those of Gaussian noise, for a fraction of the random numbers.

    Args:
        gradients: On the generator's device. Of a complex entry's noise, σ² is shared by its two parts.
        deviation: σ, at least 0, in the units of the gradients.
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
            signs = bernoulli_int16(parts.numel(), 0.5, generator).view(parts.shape).to(parts.dtype)
        else:
            signs = torch.empty_like(parts).bernoulli_(0.5, generator=generator)
        parts.add_(signs.mul_(2).sub_(1).mul_(size))


@torch.no_grad()
def centralize_(gradients: Sequence[Tensor]) -> None:
    r"""Takes its mean away from the gradient of every unit, in place.

    .. math:: g_u \leftarrow g_u - \frac{1}{n_u} \sum_i g_{u,i}

    Args:
        gradients: Tensors of two or more dimensions, the first of which counts the units.

    Reference:
        Hongwei Yong, Jianqiang Huang, Xiansheng Hua, Lei Zhang: Gradient Centralization: A New Optimization Technique
        for Deep Neural Networks, ECCV 2020, arXiv:2004.01461.

    >>> gradient = torch.tensor([[1.0, 3.0], [0.0, 4.0]])
    >>> centralize_([gradient])
    >>> gradient
    tensor([[-1.,  1.],
            [-2.,  2.]])
    """
    for gradient in gradients:
        gradient.sub_(gradient.mean(dim=tuple(range(1, gradient.ndim)), keepdim=True))


def unit_norms(units: Tensor) -> Tensor:
    """Returns the Euclidean norm of every unit.

    Args:
        units: (units, ...); a tensor of one dimension is one unit.

    Returns:
        A tensor (units, 1, ...) that broadcasts against ``units``, real and at least in float32.

    >>> unit_norms(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([[5.],
            [2.]])
    """
    return _norm(units, 2, tuple(range(1, units.ndim)) or None, keepdim=units.ndim > 1)


def _norm(tensor: Tensor, order: float, dim: tuple[int, ...] | None = None, *, keepdim: bool = False) -> Tensor:
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(tensor, order, dim=dim, keepdim=keepdim, dtype=dtype)
    return norm
