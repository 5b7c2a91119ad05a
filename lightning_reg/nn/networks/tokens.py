"""Tokens of a transformer: patches of an image or time steps of a sequence, with their positions."""

import math
from collections.abc import Sequence

from torch import Tensor, cat, nn
from typing_extensions import override

from lightning_reg.nn.layers.tracing import traced_whole
from lightning_reg.settings import SettingError, check_count

__all__ = ["TokenEmbedding"]


class TokenEmbedding(nn.Module):
    """Embeds an image's patches or a sequence's time steps as tokens, and adds a learned vector for each position.

    Args:
        input_shape: (C, H, W) of one image or (T, F) of one sequence.
        embed_dim: Width E of a token.
        patch_size: Height and width P of a patch; must divide those of the image. Sequences have none.
        class_token: Whether to prepend a learned token for the whole sample.

    Raises:
        SettingError: If the patches don't divide the image, or inputs have another shape.

    Reference:
        Alexey Dosovitskiy et al.: An Image is Worth 16x16 Words, ICLR 2021, arXiv:2010.11929.

    >>> import torch
    >>> TokenEmbedding((1, 8, 8), 32, patch_size=2, class_token=True)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 17, 32])
    """

    def __init__(
        self, input_shape: Sequence[int], embed_dim: int, *, patch_size: int = 4, class_token: bool = False
    ) -> None:
        super().__init__()
        check_count("embed_dim", embed_dim)
        self.input_shape = tuple(input_shape)
        self.project: nn.Module
        if len(input_shape) == 2:
            self.project = nn.Linear(input_shape[1], embed_dim)
            count = input_shape[0]
        else:
            count = _patches(input_shape, patch_size)
            self.project = nn.Conv2d(input_shape[0], embed_dim, patch_size, stride=patch_size)
        # Embeddings rather than bare parameters, because weight decay and penalties skip embeddings.
        self.class_token = nn.Embedding(1, embed_dim) if class_token else None
        self.position = nn.Embedding(count + class_token, embed_dim)
        for embedding in filter(None, (self.class_token, self.position)):
            nn.init.normal_(embedding.weight, std=0.02)

    @override
    @traced_whole
    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the tokens (N, T, E), or (N, 1 + T, E) with a class token.

        Args:
            inputs: (N, *input_shape).
        """
        if tuple(inputs.shape[1:]) != self.input_shape:
            wanted = ", ".join(map(str, ("N", *self.input_shape)))
            raise SettingError(f"inputs must have the shape ({wanted}), but have {tuple(inputs.shape)}")
        tokens: Tensor = self.project(inputs)
        if tokens.ndim == 4:
            tokens = tokens.flatten(2).transpose(1, 2)  # (N, E, H/P, W/P) to (N, T, E)
        if self.class_token is not None:
            tokens = cat([self.class_token.weight.expand(len(tokens), -1, -1), tokens], 1)
        return tokens + self.position.weight


def _patches(input_shape: Sequence[int], patch_size: int) -> int:
    if len(input_shape) != 3:
        raise SettingError(
            "input_shape must be (channels, height, width) of an image or (time, features) of a sequence, but is "
            f"{tuple(input_shape)}"
        )
    check_count("patch_size", patch_size)
    height, width = input_shape[1:]
    if height % patch_size or width % patch_size:
        raise SettingError(
            f"patch_size must divide height and width, which are {height} and {width}, but is {patch_size}"
        )
    return math.prod(size // patch_size for size in (height, width))
