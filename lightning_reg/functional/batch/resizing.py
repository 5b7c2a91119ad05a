"""Images whose size grows over training."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["progressive_sides", "resized"]


def progressive_sides(
    sides: tuple[int, int], done: float, *, start: float, stages: int, multiple_of: int = 1
) -> tuple[int, int]:
    r"""Returns the height and the width of images in the current stage of training.

    .. math:: s_i = s_0 + (s - s_0) \frac{i}{M - 1}, \qquad i = \lfloor M t \rfloor

    Args:
        sides: Full height and width s, in pixels.
        done: Completed fraction t of training, in [0, 1).
        start: Relative size of the first stage, :math:`s_0 / s`, in (0, 1].
        stages: Number M of stages of equal length, at least 1; the last has the full size.
        multiple_of: Number of pixels to whose multiples sides are rounded before the last stage.

    Reference:
        Mingxing Tan, Quoc V. Le: EfficientNetV2: Smaller Models and Faster Training, ICML 2021, arXiv:2104.00298.

    >>> [progressive_sides((32, 48), done, start=0.5, stages=3, multiple_of=8) for done in (0.0, 0.5, 0.9)]
    [(16, 24), (24, 32), (32, 48)]
    """
    stage = min(int(done * stages), stages - 1)
    if stage == stages - 1:
        return sides
    share = start + (1 - start) * stage / (stages - 1)
    height, width = (max(round(side * share / multiple_of), 1) * multiple_of for side in sides)
    return min(height, sides[0]), min(width, sides[1])


def resized(images: Tensor, sides: tuple[int, int]) -> Tensor:
    """Resizes images by bilinear interpolation without aliasing; images of that size are returned as they are.

    Args:
        images: (N, C, H, W), of a floating dtype.
        sides: New height and width.

    >>> import torch
    >>> resized(torch.ones(1, 1, 4, 4), (2, 2))
    tensor([[[[1., 1.],
              [1., 1.]]]])
    """
    if tuple(images.shape[-2:]) == sides:
        return images
    return F.interpolate(images, sides, mode="bilinear", align_corners=False, antialias=True)
