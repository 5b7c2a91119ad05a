"""Color operations on images: a whole batch at once, with parameters for each image."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BRIGHTNESS", "CONTRAST", "HUE", "SATURATION", "blur", "grayscale", "jitter_colors_", "shift_hue_"]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Kinds of color changes for :func:`jitter_colors_`."""

_PIECE = 32  # pixels of a row that are blurred by one matrix product


def grayscale(images: Tensor) -> Tensor:
    """Returns the luminance of each pixel: 0.2989 red + 0.587 green + 0.114 blue.

    Args:
        images: (N, 3, H, W); for other numbers of channels, (N, C, H, W), their mean is returned.

    Returns:
        (N, 1, H, W).

    >>> grayscale(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)).item()
    0.29...
    """
    if images.shape[1] == 1:
        return images
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.chunk(3, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def jitter_colors_(
    images: Tensor, kinds: Tensor, factors: Tensor, hue: Tensor | None = None, hue_at: int = 0
) -> Tensor:
    r"""Changes brightness, contrast, saturation and hue in place, in a separate order for each image.

    The first three are one formula with different references r, applied to the whole batch at once:

    .. math:: y = \min(\max(f \, x + (1 - f) \, r, 0), 1)

    r is 0 for brightness, the mean gray value of the image for contrast, the gray value of the pixel for saturation.
    Hue costs the most and is shifted once, for all images, between two rounds: changes that come first for an image are
    in rounds before it, with the factor 1 in the others.

    Args:
        images: (N, C, H, W), floats on [0, 1]; C is 3 where hues are shifted.
        kinds: (rounds, N), kind of change in each round: ``BRIGHTNESS``, ``CONTRAST``, ``SATURATION``.
        factors: (rounds, N), factor f of each change; at 1 the image stays as it is.
        hue: (N,), shift of hue as a fraction of the color circle; None for no shift.
        hue_at: Round, counted from 0, before which hues are shifted.

    Returns:
        The images.

    >>> image = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1)
    >>> jitter_colors_(image, torch.tensor([[BRIGHTNESS]]), torch.tensor([[2.0]])).flatten()
    tensor([0.4000, 0.8000, 1.0000])
    """
    own = factors[..., None, None, None]  # (rounds, N, 1, 1, 1)
    to_pixel = ((1 - factors) * (kinds == SATURATION))[..., None, None, None]
    to_mean = ((1 - factors) * (kinds == CONTRAST))[..., None, None, None]
    for round_index in range(len(kinds) + 1):
        if hue is not None and round_index == hue_at:
            shift_hue_(images, hue)
        # On a CPU a round that changes nothing is skipped; elsewhere the check would synchronize.
        if round_index < len(kinds) and (images.device.type != "cpu" or (factors[round_index] != 1).any()):
            gray = grayscale(images)
            shift = to_mean[round_index] * gray.mean((2, 3), keepdim=True)
            reference = (gray * to_pixel[round_index]).add_(shift)  # (N, 1, H, W)
            images.mul_(own[round_index]).add_(reference).clamp_(0, 1)
    return images


def shift_hue_(images: Tensor, shift: Tensor) -> Tensor:
    r"""Rotates hues on the color circle, in place; value and saturation of HSV stay.

    Neither a hue nor a division is needed. With M the largest and m the smallest of a pixel's channels, and C = M - m,
    red is :math:`d = (C + g + b - r - m) / C` sixths of the circle away from a pixel, on the side given by the sign of
    g - b. Rotated by s circles it is :math:`d' = |d \pm 6 s|` away, and

    .. math:: r' = m + \min(\max(C \, (| d' - 3 | - 1), 0), C)

    Green and blue likewise, with the channels in a circle.

    Args:
        images: (N, 3, H, W) on [0, 1].
        shift: (N,), rotation s in circles, in [-0.5, 0.5].

    Returns:
        The images.

    >>> shift_hue_(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1), torch.tensor([1 / 3])).flatten().round()
    tensor([0., 1., 0.])
    """
    red, green, blue = images.chunk(3, dim=1)  # (N, 1, H, W) each
    largest = torch.maximum(torch.maximum(red, green), blue)
    smallest = torch.minimum(torch.minimum(red, green), blue)
    chroma = largest - smallest
    # Everything is multiplied by C, so that gray pixels need no special case.
    rest = torch.add(chroma, red).add_(green).add_(blue).sub_(smallest)
    turn = 6 * shift.view(-1, 1, 1, 1)
    side = torch.empty_like(images)
    for channel, (one, other) in enumerate(((green, blue), (blue, red), (red, green))):
        torch.sub(one, other, out=side[:, channel : channel + 1])
    distance = torch.copysign(chroma * turn.abs(), side, out=side).mul_(turn.sign())
    distance.add_(rest).sub_(images, alpha=2).abs_()
    distance.sub_(3 * chroma).abs_().add_(smallest - chroma)
    return torch.clamp(distance, smallest, largest, out=images)


def blur(images: Tensor, sigmas: Tensor, kernel_size: int) -> Tensor:
    r"""Blurs every image by its own Gaussian, with reflection at the border.

    .. math:: w_k \propto e^{-k^2 / (2 \sigma^2)}

    for k pixels from the middle, once along columns and once along rows.

    Args:
        images: (N, C, H, W), of a floating dtype.
        sigmas: (N,), standard deviation σ in pixels; at 0 the image stays as it is.
        kernel_size: Width of the Gaussian in pixels, odd, below twice the image's height and width.

    Returns:
        (N, C, H, W).

    >>> blur(torch.eye(3).view(1, 1, 3, 3), torch.zeros(1), 3)[0, 0]
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 1.]])
    """
    if images.device.type == "cpu" and not sigmas.all():  # elsewhere the check would synchronize
        chosen = sigmas.nonzero().flatten()
        return images.index_copy(0, chosen, blur(images[chosen], sigmas[chosen], kernel_size))
    if not images.numel():
        return images
    reach = kernel_size // 2
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    # So narrow that neighbors get exactly 0, where σ is 0.
    narrow = sigmas.to(images.dtype).clamp(min=1e-3).unsqueeze(1)
    weights = (-0.5 * (offsets / narrow).square()).softmax(1)  # (N, K)
    bordered = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    # By matrix products of pieces of rows, then of columns, with a banded matrix of the weights, shifted by one pixel
    # from column to column: several times as fast as a convolution with a filter for each image.
    n, channels, height, width = images.shape
    length = _PIECE + kernel_size - 1
    bordered = F.pad(bordered, (0, -width % _PIECE, 0, -height % _PIECE))
    taps = torch.arange(length, device=images.device).unsqueeze(1) - torch.arange(_PIECE, device=images.device)
    is_within = (taps >= 0) & (taps < kernel_size)
    bands = weights[:, taps.clamp(0, kernel_size - 1)] * is_within  # (N, length, piece)
    rows = bordered.unfold(3, length, _PIECE)  # (N, C, rows, pieces, length)
    blurred = (rows.flatten(1, 3) @ bands).view(n, channels, bordered.shape[2], -1)
    columns = blurred[..., :width].unfold(2, length, _PIECE).mT  # (N, C, pieces, length, W)
    blurred = bands.mT[:, None, None] @ columns
    return blurred.flatten(2, 3)[:, :, :height]
