"""Dropout of neighboring units of feature maps."""

from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg.functional.forward.drop_block import drop_block, seed_rate
from lightning_reg.functional.forward.dropout import mask_shape
from lightning_reg.nn.layers.dropout import RatedLayer
from lightning_reg.nn.layers.stochastic import check_rank
from lightning_reg.settings import check_count

__all__ = ["DropBlock", "DropBlock1d", "DropBlock2d", "DropBlock3d"]


class DropBlock(RatedLayer):
    """Drops blocks of feature maps with one to three dimensions of positions.

    What it does: the share of units that is dropped is ``p`` in expectation, for every size of map and block; each
    survivor is divided by its own probability of survival. In evaluation inputs pass through.

    When to use: after convolutions with many positions, where dropout of single units is undone by their neighbors;
    best with a rate that rises, see ``DropoutSchedule``. When not: on features without positions.

    Cost: a draw of the seeds, a few passes over bytes, one over the inputs forward and one backward.

    Args:
        p: Share of units that is dropped, in [0, 1].
        block_size: Side of a block, at least 1; may be even, and larger than the map.
        per_channel: Whether each channel drops its own blocks, which the paper found to be better; otherwise all
            channels drop the same ones, which is cheaper.

    Raises:
        SettingError: If an argument is out of range, or the inputs have another rank.

    Reference:
        Golnaz Ghiasi, Tsung-Yi Lin, Quoc V. Le: DropBlock: A regularization method for convolutional networks, NeurIPS
        2018, arXiv:1810.12890. How it deviates: :func:`lightning_reg.functional.forward.drop_block.drop_block`.

    >>> DropBlock(0.1, block_size=3)(torch.ones(2, 4, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    """

    shape: ClassVar[str] = "(N, C, L), (N, C, H, W) or (N, C, D, H, W)"
    ranks: ClassVar[tuple[int, int]] = (3, 5)

    def __init__(self, p: float = 0.1, *, block_size: int = 7, per_channel: bool = True) -> None:
        super().__init__(p)
        check_count("block_size", block_size)
        self.block_size = block_size
        self.per_channel = per_channel

    @override
    def perturb(self, inputs: Tensor) -> Tensor:
        check_rank(self, inputs, self.shape, least=self.ranks[0], most=self.ranks[1])
        if not inputs.numel():
            return inputs
        if self.p == 1:
            return self._drop(inputs, ())
        gamma = seed_rate(inputs.shape[2:], self.block_size, self.p)
        return drop_block(inputs, self._seeds(inputs, gamma), self.block_size, gamma)

    def _seeds(self, inputs: Tensor, gamma: float | Tensor) -> Tensor:
        shape = inputs.shape if self.per_channel else mask_shape(inputs.shape, (1,))
        if torch.compiler.is_compiling() and (self.stream is None or not self.stream.serves(inputs)):
            # In 32 bits: 16 have too few values for a small rate.
            return self.draw("uniform", torch.empty_like(inputs, dtype=torch.float32), shape) < gamma
        return self.draw("bits", inputs, shape, gamma)

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, block_size={self.block_size}, per_channel={self.per_channel}"


class DropBlock1d(DropBlock):
    """:class:`DropBlock` over (N, C, L) alone."""

    shape = "(N, C, L)"
    ranks = (3, 3)


class DropBlock2d(DropBlock):
    """:class:`DropBlock` over (N, C, H, W) alone."""

    shape = "(N, C, H, W)"
    ranks = (4, 4)


class DropBlock3d(DropBlock):
    """:class:`DropBlock` over (N, C, D, H, W) alone."""

    shape = "(N, C, D, H, W)"
    ranks = (5, 5)
