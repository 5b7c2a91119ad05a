"""A loader that fetches a batch in one operation, in an order that can be resumed.

An ordinary loader makes one sample at a time (decode, transform, normalize) and then stacks them. Small images and
tables fit into memory, so here they lie in one tensor, a batch is one index operation, and arithmetic is left to the
device.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from typing_extensions import override

__all__ = ["ResumableLoader", "SampleDataset", "ShuffledSampler", "as_fetched"]

Batch = tuple[Tensor, ...]


class SampleDataset(Dataset[Batch]):
    """Samples in memory, or a subset of them.

    Args:
        tensors: Tensors (N, ...), such as images and labels.
        indices: (M,), positions of the samples in the subset, in order; None for all. Nothing is copied.

    >>> dataset = SampleDataset(torch.zeros(9, 1, 2, 2), torch.arange(9), indices=torch.tensor([7, 8]))
    >>> dataset.__getitems__([1])[1]
    tensor([8])
    """

    def __init__(self, *tensors: Tensor, indices: Tensor | None = None) -> None:
        self.tensors = tensors
        self.indices = torch.arange(len(tensors[0])) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    @override
    def __getitem__(self, index: int) -> Batch:
        position = self.indices[index]
        return tuple(tensor[position] for tensor in self.tensors)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Returns a whole batch: (B, ...) of each tensor."""
        positions = self.indices[torch.as_tensor(indices)]
        return tuple(tensor.index_select(0, positions) for tensor in self.tensors)


class ShuffledSampler(DistributedSampler[Batch]):
    """torch's DistributedSampler, also for a single process, that can start in the middle of an epoch.

    Its order depends on the seed and the epoch alone, not on the global random stream, so a resumed run sees the
    batches that the uninterrupted one would have seen.

    Args:
        rank: Rank of this process, from 0.
        seed: Seed of the order, equal on all ranks.
        position: Function that returns the number of batches trained on in this epoch.

    >>> sampler = ShuffledSampler(range(4), num_replicas=1, rank=0, seed=0)
    >>> order = list(sampler)
    >>> sampler.skip_once = 3
    >>> list(sampler) == order[3:], list(sampler) == order
    (True, True)
    """

    def __init__(
        self,
        dataset: Dataset[Batch],
        *,
        num_replicas: int,
        rank: int,
        seed: int,
        position: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.position = position
        self.skip_once = 0

    @override
    def __iter__(self) -> Iterator[Any]:
        order = list(super().__iter__())
        skipped, self.skip_once = self.skip_once, 0
        return iter(order[skipped:])


class ResumableLoader(DataLoader[Batch]):
    """A DataLoader whose position Lightning saves in checkpoints, so that an epoch can be resumed in its middle.

    It is constructed like any DataLoader, with a :class:`ShuffledSampler`; with another one (Lightning puts a
    sequential sampler in its place to overfit a few batches) it starts every epoch at its beginning.
    """

    def state_dict(self) -> dict[str, int]:
        """Returns the position within the epoch; Lightning looks for this method."""
        return {"batches": self.sampler.position() if isinstance(self.sampler, ShuffledSampler) else 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lets the next epoch start at the saved position."""
        if isinstance(self.sampler, ShuffledSampler):
            self.sampler.skip_once = state_dict["batches"] * (self.batch_size or 1)


def as_fetched(batch: Any) -> Any:
    """Returns the batch as the dataset returned it; there is nothing left to collate."""
    return batch
