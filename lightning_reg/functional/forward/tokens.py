"""Selection of tokens to keep, given the random numbers."""

import math

import torch
from torch import Tensor

__all__ = ["gathered", "kept_count", "kept_tokens"]


def kept_count(length: int, p: float) -> int:
    r"""Returns the number of a sequence's tokens that are kept.

    .. math:: \max(1, \lfloor L (1 - p) \rfloor)

    Args:
        length: Number L of tokens, at least 1.
        p: Share of tokens that is dropped, in [0, 1].

    >>> kept_count(100, 0.9), kept_count(3, 0.9)
    (10, 1)
    """
    return max(1, math.floor(length * (1 - p) + 1e-9))  # 100 · (1 - 0.9) is a bit less than 10


def kept_tokens(uniform: Tensor, p: float, *, prefix: int = 0, padding: Tensor | None = None) -> Tensor:
    """Returns the positions of the tokens that are kept, in order, equally many for every sample.

    With a padding mask, each sample keeps its share of the tokens that aren't padding, at least one of them, and is
    filled up with padding.

    Args:
        uniform: (N, L), random numbers on [0, 1) that order the tokens after the prefix.
        p: Share of these that is dropped, in [0, 1].
        prefix: Number of tokens before these, all of which are kept.
        padding: (N, L), True where a token is padding; None for no padding.

    Returns:
        (N, prefix + K), with K of :func:`kept_count`.

    Reference:
        Yue Liu, Christos Matsoukas, Fredrik Strand, Hossein Azizpour, Kevin Smith: PatchDropout: Economizing Vision
        Transformers Using Patch Dropout, WACV 2023, arXiv:2208.07220.

    >>> kept_tokens(torch.tensor([[0.3, 0.9, 0.1, 0.5]]), 0.5, prefix=1).tolist()
    [[0, 1, 3]]
    """
    length = uniform.shape[1]
    count = min(kept_count(length, p), length)  # there may be no token after the prefix
    order = uniform
    if padding is not None:
        # First a sample's share of real tokens, in random order; then padding; then its other tokens.
        rank = (uniform + padding).argsort(1).argsort(1)
        true_tokens = length - padding.sum(1, keepdim=True)
        share = (true_tokens * (1 - p) + 1e-9).floor().clamp(min=1)
        order = rank + length * padding + 2 * length * (~padding & (rank >= share))
    kept = order.topk(count, 1, largest=False).indices.sort(1).values + prefix
    first = torch.arange(prefix, device=kept.device).expand(len(kept), -1)
    return torch.cat([first, kept], 1)


def gathered(values: Tensor, kept: Tensor) -> Tensor:
    """Returns the entries of the tokens that are kept.

    Args:
        values: (N, T) or (N, T, E), entries of all tokens.
        kept: (N, K), positions of the kept tokens.

    >>> gathered(torch.tensor([[5, 6, 7]]), torch.tensor([[0, 2]])).tolist()
    [[5, 7]]
    """
    index = kept if values.ndim == 2 else kept[..., None].expand(-1, -1, values.shape[2])
    return values.gather(1, index)
