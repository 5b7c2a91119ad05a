"""Mixing of samples and their targets.

Every sample's partner is the one before it, and that of the first is the last: in a shuffled batch this is a random
partner, and needs no rolled copy.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_reg.functional.batch.boxes import Box, in_box
from lightning_reg.settings import SettingError

__all__ = ["check_labels", "mix_with_previous", "paste_from_previous", "previous", "soft_targets"]


def previous(batch: Tensor) -> Tensor:
    """Returns every sample's partner: the sample before it, for the first one the last.

    Args:
        batch: (N, ...).

    >>> previous(torch.tensor([1, 2, 4]))
    tensor([4, 1, 2])
    """
    return batch.roll(1, 0)


def mix_with_previous(batch: Tensor, minor_weight: Tensor) -> Tensor:
    r"""Mixes every sample with the one before it; the first with the last.

    .. math:: y_i = (1 - w_i) \, x_i + w_i \, x_{i-1}

    Args:
        batch: (N, ...), of a floating dtype.
        minor_weight: Weight w of the partner, a scalar or (N,), on the batch's device.

    Returns:
        A new tensor of the batch's shape and memory format.

    Reference:
        Hongyi Zhang, Moustapha Cissé, Yann N. Dauphin, David Lopez-Paz: mixup: Beyond Empirical Risk Minimization,
        ICLR 2018, arXiv:1710.09412.

    >>> mix_with_previous(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor(0.25)).flatten()
    tensor([1.7500, 1.7500, 3.5000])
    """
    weight = minor_weight.to(batch.dtype)
    if weight.ndim:
        weight = weight.view(-1, *[1] * (batch.ndim - 1))
    return _with_previous(torch.lerp, batch, weight)


def paste_from_previous(images: Tensor, boxes: Sequence[Box]) -> Tensor:
    r"""Pastes a box of every image's predecessor into it, at the same place.

    .. math:: y_i = m_i \, x_{i-1} + (1 - m_i) \, x_i

    where the mask m is 1 within the box. Where the box covers more than half of the image the mask is inverted: the
    image keeps the box and gets the rest from its predecessor, so that it stays the dominant one.

    Args:
        images: (N, ..., H, W).
        boxes: One box for all images, or N: top, bottom, left and right, the second and the fourth excluded.

    Returns:
        A new tensor of the images' shape and memory format.

    Reference:
        Sangdoo Yun et al.: CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, ICCV
        2019, arXiv:1905.04899.

    >>> images = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    >>> paste_from_previous(images, [(0, 1, 0, 1)])[0, 0]
    tensor([[2., 1.],
            [1., 1.]])
    """
    if len(boxes) == 1:
        return _pasted_once(images, boxes[0])
    if images.device.type == "cpu" and not (images.requires_grad and torch.is_grad_enabled()):
        mixed = torch.empty_like(images)
        for index, box in enumerate(boxes):
            base, other = images[index], images[index - 1]
            if _covers_most(box, images):
                base, other = other, base
            mixed[index].copy_(base)
            _within(mixed[index], box).copy_(_within(other, box))
        return mixed
    # On a GPU every copy would be a kernel launch, so one mask covers all of them.
    rows = torch.tensor([(*box, _covers_most(box, images)) for box in boxes]).to(images.device, non_blocking=True)
    masks = in_box(rows[:, :4], *images.shape[-2:]) ^ (rows[:, 4:] > 0).unsqueeze(2)  # (N, H, W)
    masks = masks.view(len(masks), *[1] * (images.ndim - 3), *masks.shape[1:])
    return _with_previous(_chosen, images, masks)


def _pasted_once(images: Tensor, box: Box) -> Tensor:
    if _covers_most(box, images):
        mixed = torch.cat((images[-1:], images[:-1]))  # unlike roll, it keeps the memory format
        _within(mixed, box).copy_(_within(images, box))
        return mixed
    mixed = images.clone()
    _within(mixed[1:], box).copy_(_within(images[:-1], box))
    _within(mixed[:1], box).copy_(_within(images[-1:], box))
    return mixed


def _within(images: Tensor, box: Box) -> Tensor:
    top, bottom, left, right = box
    return images[..., top:bottom, left:right]


def _covers_most(box: Box, images: Tensor) -> bool:
    top, bottom, left, right = box
    return 2 * (bottom - top) * (right - left) > images.shape[-2] * images.shape[-1]


def _chosen(own: Tensor, other: Tensor, mask: Tensor, *, out: Tensor | None = None) -> Tensor:
    return torch.where(mask, other, own) if out is None else torch.where(mask, other, own, out=out)


def _with_previous(operation: Callable[..., Tensor], batch: Tensor, control: Tensor) -> Tensor:
    """Applies an operation to every sample and its partner: two reads and one write, without a rolled copy."""
    if batch.requires_grad and torch.is_grad_enabled():
        return operation(batch, previous(batch), control)  # autograd can't follow writes into a given tensor
    mixed = torch.empty_like(batch)
    is_per_sample = control.ndim == batch.ndim  # rather than one for all
    operation(batch[1:], batch[:-1], control[1:] if is_per_sample else control, out=mixed[1:])
    operation(batch[:1], batch[-1:], control[:1] if is_per_sample else control, out=mixed[:1])
    return mixed


def check_labels(labels: Tensor, num_classes: int, *, ignored: int | None = None) -> None:
    """Raises unless all labels are class indices.

    Args:
        labels: (N, ...), class indices.
        num_classes: Number of classes C.
        ignored: Label that is allowed although it isn't a class index; None for none.

    Raises:
        SettingError: If a label is out of range; names the first one and its sample.

    >>> check_labels(torch.tensor([0, 7]), 3)
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: labels must be in [0, 3), but sample 1 of the batch has 7
    """
    wrong = (labels < 0) | (labels >= num_classes)
    if ignored is not None:
        wrong &= labels != ignored
    if wrong.any():
        first = wrong.nonzero()[0]
        raise SettingError(
            f"labels must be in [0, {num_classes}), but sample {int(first[0])} of the batch has "
            f"{int(labels[tuple(first)])}"
        )


def soft_targets(targets: Tensor, num_classes: int) -> Tensor:
    """Turns class indices into probabilities; probabilities pass through.

    Args:
        targets: (N,) class indices of an integer dtype, (N, C) ones and zeros of an integer dtype, or probabilities.
        num_classes: Number of classes C.

    Returns:
        (N, C), float32.

    Raises:
        SettingError: If integers have another shape, or a label isn't in [0, C); the latter is checked only on a CPU,
            because a GPU would have to synchronize.

    >>> soft_targets(torch.tensor([0, 2]), 3)
    tensor([[1., 0., 0.],
            [0., 0., 1.]])
    """
    if targets.is_floating_point() or targets.is_complex():
        return targets
    if targets.ndim == 2 and targets.shape[1] == num_classes:
        return targets.float()
    if targets.ndim != 1:
        raise SettingError(
            f"targets must be class indices (N,) or one-hot (N, {num_classes}) for {num_classes} classes, but have the "
            f"shape {tuple(targets.shape)}"
        )
    if targets.device.type == "cpu":
        check_labels(targets, num_classes)
    soft = torch.zeros(len(targets), num_classes, device=targets.device)
    return soft.scatter_(1, targets.long().unsqueeze(1), 1.0)
