"""Operations on the states of recurrent layers, given the random numbers."""

import torch
from torch import Tensor

__all__ = ["zoneout"]


def zoneout(previous: Tensor, new: Tensor, zoned: Tensor | None, p: float) -> Tensor:
    r"""Keeps units of the previous state at random in training; returns the expectation in evaluation.

    .. math::
        h_t = z \odot h_{t-1} + (1 - z) \odot \tilde{h}_t, \quad z_i \sim \mathrm{Bernoulli}(p) \text{ in training},
        \quad z_i = p \text{ in evaluation}

    Args:
        previous: State of the previous time step, of any shape.
        new: State that the layer computes from it and the inputs, of the same shape.
        zoned: Mask z of units to keep, bools of that shape; None in evaluation.
        p: Probability that a unit is kept, in [0, 1].

    Reference:
        David Krueger et al.: Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations, ICLR 2017,
        arXiv:1606.01305.

    >>> previous, new = torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0])
    >>> zoneout(previous, new, torch.tensor([True, False]), 0.5), zoneout(previous, new, None, 0.5)
    (tensor([1., 3.]), tensor([2., 2.]))
    """
    previous = previous.to(new.dtype)
    return torch.lerp(new, previous, p) if zoned is None else torch.where(zoned, previous, new)
