"""Operations on residual branches, given the random numbers."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from typing_extensions import override

from lightning_reg.functional.autograd import is_traced_or_transformed

__all__ = ["shake_drop", "shake_drop_expectation"]


def shake_drop(
    branch: Tensor, uniform: Tensor, p: float, alpha: tuple[float, float], beta: tuple[float, float]
) -> Tensor:
    r"""Multiplies a residual branch by one random number forward and by another one backward.

    .. math::
        y = (b + \alpha - b \alpha) \, x, \qquad
        \frac{\partial L}{\partial x} = (b + \beta - b \beta) \, \frac{\partial L}{\partial y}, \qquad
        b \sim \mathrm{Bernoulli}(1 - p)

    With b = 1 the branch isn't changed; with b = 0 it is scaled by α, and its gradient by β. So the gradient isn't
    that of the function, on purpose.

    Args:
        branch: (N, ...), output x of the residual branch.
        uniform: (3, N, 1, ...), uniform numbers on [0, 1), for b, α and β of each sample.
        p: Probability that a branch is disturbed, in [0, 1].
        alpha: Smallest and largest α.
        beta: Smallest and largest β.

    Reference:
        Yoshihiro Yamada, Masakazu Iwamura, Takuya Akiba, Koichi Kise: ShakeDrop Regularization for Deep Residual
        Learning, IEEE Access 2019, arXiv:1802.02375.

    >>> branch = torch.ones(2, 1, requires_grad=True)
    >>> uniform = torch.tensor([[[0.1], [0.9]], [[0.5], [0.5]], [[0.5], [0.5]]])
    >>> out = shake_drop(branch, uniform, 0.4, (-1.0, 0.0), (0.0, 1.0))
    >>> out.flatten().tolist(), torch.autograd.grad(out.sum(), branch)[0].flatten().tolist()
    ([-0.5, 1.0], [0.5, 1.0])
    """
    is_shaken = uniform[0] < p
    forth, back = (
        torch.where(is_shaken, low + (high - low) * drawn, 1.0).to(branch.dtype)
        for drawn, (low, high) in zip(uniform[1:], (alpha, beta), strict=True)
    )
    if is_traced_or_transformed():
        return branch * back + (branch * (forth - back)).detach()
    shaken: Tensor = _Scaled.apply(branch, forth, back)
    return shaken


def shake_drop_expectation(p: float, alpha: tuple[float, float]) -> float:
    r"""Returns the expectation of b + α − bα, by which a branch is multiplied in evaluation.

    .. math:: 1 - p + p \, \mathrm{E}[\alpha]

    Args:
        p: Probability that a branch is disturbed, in [0, 1].
        alpha: Smallest and largest α, which is uniform between them.

    >>> shake_drop_expectation(0.5, (-1.0, 1.0))
    0.5
    """
    return 1 - p + p * sum(alpha) / 2


class _Scaled(Function):
    """Multiplies inputs by ``forth`` in the forward pass, and gradients by ``back`` in the backward pass."""

    @staticmethod
    @override
    def forward(ctx: Any, inputs: Tensor, forth: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        ctx.save_for_forward(back)
        return inputs * forth

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.saved_tensors[0], None, None

    @staticmethod
    @override
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        tangents: Tensor = tangent * ctx.saved_tensors[0]
        return tangents
