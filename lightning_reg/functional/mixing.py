"""Mixing of samples and their targets."""

import torch
from torch import Tensor

__all__ = ["mix_with_previous", "soft_targets"]


def mix_with_previous(batch: Tensor, minor_weight: Tensor) -> Tensor:
    r"""Mixes every sample with the one before it; the first with the last.

    .. math:: y_i = (1 - w_i) \, x_i + w_i \, x_{i-1}

    In a shuffled batch the sample before is a random partner. Both operands are read from the batch as it lies, so no
    rolled copy is made.

    Args:
        batch: (N, ...), of a floating dtype.
        minor_weight: w, a scalar or (N,), on the batch's device.

    Returns:
        A new tensor of the batch's shape and memory format; the batch is left alone.

    Reference:
        Hongyi Zhang, Moustapha Cissé, Yann N. Dauphin, David Lopez-Paz: mixup: Beyond Empirical Risk Minimization,
        ICLR 2018, arXiv:1710.09412.

    >>> mix_with_previous(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor(0.25)).flatten()
    tensor([1.7500, 1.7500, 3.5000])
    """
    weight = minor_weight.to(batch.dtype)
    if weight.ndim:
        weight = weight.view(-1, *[1] * (batch.ndim - 1))
    if batch.requires_grad and torch.is_grad_enabled():
        return torch.lerp(batch, batch.roll(1, 0), weight)  # autograd can't follow writes into a given tensor
    mixed = torch.empty_like(batch)
    torch.lerp(batch[1:], batch[:-1], weight[1:] if weight.ndim else weight, out=mixed[1:])
    torch.lerp(batch[:1], batch[-1:], weight[:1] if weight.ndim else weight, out=mixed[:1])
    return mixed


def soft_targets(targets: Tensor, num_classes: int) -> Tensor:
    """Turns class indices into probabilities; probabilities pass through.

    Args:
        targets: (N,) class indices of an integer dtype, or (N, C) probabilities.
        num_classes: C.

    Returns:
        (N, C), float32.

    >>> soft_targets(torch.tensor([0, 2]), 3)
    tensor([[1., 0., 0.],
            [0., 0., 1.]])
    """
    if targets.is_floating_point():
        return targets
    return torch.nn.functional.one_hot(targets, num_classes).float()
