"""The indices of a data set that a loader's sampler draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from lightning_reg.core.copies.copying import deep_copy
from lightning_reg.core.lightning import undistributed
from lightning_reg.monitors.clean_samples import all_within
from lightning_reg.settings import SettingError

__all__ = ["drawn_indices", "list_size", "within_batches"]


def drawn_indices(loader: DataLoader[Any], trainer: Trainer, which: str) -> Sequence[Any]:
    """Returns the indices from which a loader's sampler draws, each once, in order, the same in all processes.

    A sampler that draws from a whole data set, with whatever repetitions or weights, has the indices of all samples
    whose weight isn't 0. One that isn't known is iterated once, as a copy, so that the user's draws what it would have
    drawn; of one without an end, as many indices are taken as the data set has.

    Args:
        loader: Loader over a data set with a length.
        trainer: Trainer in a fit. Its processes have to call this together.
        which: Name of the loader, for the error message.

    Raises:
        SettingError: If the sampler can't be copied or iterated, or its indices can't be sorted.
    """
    sampler, _ = _innermost(loader)
    if _iterates_as(sampler, RandomSampler, SequentialSampler):
        return range(len(sampler.data_source))
    if _iterates_as(sampler, DistributedSampler) and (sampler.shuffle or sampler.num_replicas == trainer.world_size):
        return range(len(sampler.dataset))
    mine, fault, cause = _attempted(sampler, loader)
    # Each process may draw a share of its own, or fail; all go on together, or none.
    everyones = [trainer.strategy.broadcast((mine, fault), src=rank) for rank in range(trainer.world_size)]
    faults = [fault for _, fault in everyones if fault]
    if faults:
        raise SettingError(
            f"the {which} loader's sampler must be one that GeneralizationGap can copy and iterate, but with "
            f"{type(sampler).__name__} that fails: {faults[0]}; or give the data module a method "
            "evaluation_dataloader(split) that returns a loader for 'train' and 'val'"
        ) from cause
    return sorted(set().union(*(drawn for drawn, _ in everyones)))


def within_batches(drawn: Sequence[Any], loader: Any, batches: float) -> Sequence[Any]:
    """Returns those indices that are ever given, where a trainer takes only the first batches of a loader.

    In a fixed order the samples behind them are never seen. In any other, each epoch has others, and so all count.

    Args:
        drawn: Indices that are drawn, or those of a clean counterpart of the loader's data.
        loader: The trainer's own.
        batches: Number of batches that each process takes in an epoch.
    """
    if not isinstance(loader, DataLoader) or math.isinf(batches):
        return drawn
    sampler, size = _innermost(loader)
    if _iterates_as(sampler, SequentialSampler):
        source = sampler.data_source
    elif _iterates_as(sampler, DistributedSampler) and not sampler.shuffle:
        source, size = sampler.dataset, size * sampler.num_replicas
    else:
        return drawn
    return drawn[: int(batches) * size] if len(drawn) == len(source) else drawn


def _innermost(loader: DataLoader[Any]) -> tuple[Any, int]:
    """Returns the sampler of single indices, where those around it are known, and how many of them are in a batch."""
    sampler: Any = undistributed(loader.sampler if loader.batch_sampler is None else loader.batch_sampler)
    size = 1
    while _iterates_as(sampler, BatchSampler):
        size *= sampler.batch_size
        sampler = undistributed(sampler.sampler)
    return sampler, size


def _attempted(sampler: Any, loader: DataLoader[Any]) -> tuple[set[Any], str, Exception | None]:
    """Returns what a sampler draws; if that fails, nothing, with the reason."""
    try:
        drawn = set(_drawn(sampler, loader))
        sorted(drawn)
    except Exception as error:
        return set(), f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", error
    return drawn, "", None


def list_size(loader: DataLoader[Any]) -> int | None:
    """Returns the length of the lists of indices that the sampler of a loader without batches yields.

    Args:
        loader: Loader with ``batch_size=None``.

    Returns:
        Length of the first list; None where the sampler yields single indices.
    """
    sampler = undistributed(loader.sampler)
    if _iterates_as(sampler, RandomSampler, SequentialSampler):
        return None
    with isolate_rng():
        first = _plain(next(iter(_copied(sampler, loader)), None))
    return len(first) if isinstance(first, list) else None


def _iterates_as(sampler: object, *kinds: type[Sampler[Any]]) -> bool:
    """Whether a sampler is of one of some classes, or of a subclass that draws as they do."""
    return getattr(type(sampler), "__iter__", None) in [kind.__iter__ for kind in kinds]


def _drawn(sampler: Any, loader: DataLoader[Any]) -> Iterator[Any]:
    if _iterates_as(sampler, WeightedRandomSampler):
        return iter(sampler.weights.nonzero().flatten().tolist())
    indices = _plain(getattr(sampler, "indices", None))
    if isinstance(indices, (list, tuple, range)) and indices:  # a SubsetRandomSampler's, and those of others like it
        return _flat(indices)
    with isolate_rng():
        size = len(loader.dataset)  # type: ignore[arg-type]  # it has a length
        return iter(list(itertools.islice(_flat(_copied(sampler, loader)), size)))


def _copied(sampler: Any, loader: DataLoader[Any]) -> Any:
    return deep_copy(sampler, {id(dataset): (dataset, dataset) for dataset in all_within([loader.dataset])})


def _flat(drawn: Iterable[Any]) -> Iterator[Any]:
    """Returns single indices, also of lists of them."""
    for index in map(_plain, drawn):
        if isinstance(index, list):
            yield from map(_plain, index)
        else:
            yield index


def _plain(index: Any) -> Any:
    """Returns numbers in the place of arrays and tensors."""
    return index.tolist() if hasattr(index, "tolist") else index
