"""Noise on token embeddings, given the random numbers."""

import math

from torch import Tensor

__all__ = ["embedding_noise"]


def embedding_noise(embeddings: Tensor, noise: Tensor, alpha: float, *, lengths: Tensor | None = None) -> Tensor:
    r"""Adds uniform noise to token embeddings, with an expected norm that depends on neither their number nor width.

    .. math:: y = e + \frac{\alpha}{\sqrt{L d}} (2u - 1), \quad u \sim \mathrm{Uniform}(0, 1)

    Args:
        embeddings: (..., L, d), embeddings e.
        noise: Uniform numbers u on [0, 1), of the same shape.
        alpha: Strength α, at least 0.
        lengths: (...), number of a sample's tokens that aren't padding; the tensor's L where None.

    Reference:
        Neel Jain et al.: NEFTune: Noisy Embeddings Improve Instruction Finetuning, ICLR 2024, arXiv:2310.05914.

    >>> import torch
    >>> embedding_noise(torch.zeros(1, 4), torch.ones(1, 4), 5.0)
    tensor([[2.5000, 2.5000, 2.5000, 2.5000]])
    """
    tokens, width = embeddings.shape[-2:]
    if lengths is None:
        return embeddings + (2 * noise - 1) * (alpha / math.sqrt(tokens * width))
    scale = alpha / (lengths.clamp(min=1) * width).sqrt()  # a sample may be all padding
    return embeddings + (2 * noise - 1) * scale.to(embeddings.dtype)[..., None, None]
