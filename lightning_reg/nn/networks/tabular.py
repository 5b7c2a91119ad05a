"""Embedding of a table's rows: numbers as they are, categories as learned vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.nn.layers.tracing import traced_whole
from lightning_reg.settings import SettingError, as_sequence, check_count

__all__ = ["TabularEmbedding"]


class TabularEmbedding(nn.Module):
    """Replaces the categories in a table's rows by learned vectors.

    A row is F numbers, followed by the K codes of its categories (as numbers, exact up to 2²⁴ in float32) or by their
    one-hot blocks. Blocks may be mixed: a mixture of two categories becomes the same mixture of their vectors. Codes
    and blocks are distinguished by the width of the rows.

    Code 0 stands for a value that is missing or was never seen. Its vector is initially 0, so that it is neutral until
    it has been trained.

    Args:
        num_numbers: Number F of columns of numbers, at least 0.
        cardinalities: Number of categories of each of the K columns, code 0 included; at least 2 each.
        embed_dim: Width E of a category's vector, at least 1.

    Raises:
        SettingError: If an argument is out of range, or rows have another width.

    Reference:
        Cheng Guo, Felix Berkhahn: Entity Embeddings of Categorical Variables, 2016, arXiv:1604.06737.

    >>> layer = TabularEmbedding(2, [3, 4], embed_dim=5)
    >>> layer(torch.tensor([[0.1, 0.2, 1.0, 3.0]])).shape
    torch.Size([1, 12])
    """

    def __init__(self, num_numbers: int, cardinalities: Sequence[int], embed_dim: int = 8) -> None:
        super().__init__()
        check_count("num_numbers", num_numbers, low=0)
        check_count("embed_dim", embed_dim)
        cardinalities = as_sequence("cardinalities", cardinalities)
        if not cardinalities:
            raise SettingError("cardinalities must name at least one column, but is empty")
        for cardinality in cardinalities:
            check_count("each of cardinalities", cardinality, low=2)
        self.num_numbers = num_numbers
        self.cardinalities = list(cardinalities)
        self.out_features = num_numbers + len(cardinalities) * embed_dim
        # One table for all columns, so that a batch is one look-up.
        self.vectors = nn.Embedding(sum(cardinalities), embed_dim)
        starts = torch.tensor([0, *cardinalities[:-1]]).cumsum(0)
        self.starts: Tensor
        self.register_buffer("starts", starts, persistent=False)
        self.clear_missing()

    @torch.no_grad()
    def clear_missing(self) -> None:
        """Sets the vectors of code 0 to zero, as they are initially."""
        self.vectors.weight[self.starts] = 0

    @override
    @traced_whole
    def forward(self, inputs: Tensor) -> Tensor:
        """Returns (N, F + K · E): the numbers and the vectors, of the weights' dtype.

        Args:
            inputs: (N, F + K) with codes, or (N, F + sum of the cardinalities) with one-hot blocks.
        """
        numbers, categories = inputs[:, : self.num_numbers], inputs[:, self.num_numbers :]
        weight = self.vectors.weight
        if categories.shape[1] == len(self.cardinalities):
            vectors = self.vectors(categories.long() + self.starts).flatten(1)
        elif categories.shape[1] == len(weight):
            blocks = torch.split(categories.to(weight.dtype), self.cardinalities, 1)
            tables = torch.split(weight, self.cardinalities)
            vectors = torch.cat([block @ table for block, table in zip(blocks, tables, strict=True)], 1)
        else:
            raise SettingError(
                f"inputs must have {self.num_numbers + len(self.cardinalities)} columns, {len(self.cardinalities)} of "
                f"them codes, or {self.num_numbers + len(weight)} with one-hot blocks, but have {inputs.shape[1]}"
            )
        return torch.cat([numbers.to(weight.dtype), vectors], 1)

    @override
    def extra_repr(self) -> str:
        return f"num_numbers={self.num_numbers}, cardinalities={self.cardinalities}"
