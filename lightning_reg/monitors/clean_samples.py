"""Training samples without their augmentation, as far as the data sets of training and validation show it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

__all__ = ["all_within", "are_alike", "is_drawn_anew", "without_augmentation"]

_AUGMENTATION = re.compile(r"transform|augment|^aug(s|_|$)")
_OTHER = re.compile(
    r"target|label|pick|select|ind(ex|ices)|filter|predicate|sampl|load|read|fetch|open|collate|key|cache"
)
"""What changes labels, or decides which samples there are and how they are read, rather than how they look."""
_FEW = 4  # samples, of which one that is flipped at random is almost surely seen


def are_alike(train: Dataset[Any], val: Dataset[Any]) -> bool:
    """Whether samples of both data sets have the same form, as far as their classes tell."""
    return type(_whole(train)) is type(_whole(val))


def is_drawn_anew(dataset: Dataset[Any]) -> bool:
    """Whether a data set's first samples differ from one reading to the next, as augmented ones do."""
    try:
        indices = range(min(len(dataset), _FEW))  # type: ignore[arg-type]
        with isolate_rng():
            first, second = ([list(_contents(dataset[index])) for index in indices] for _ in range(2))
    except Exception:  # they are read in other ways, or the evaluation will say so
        return False
    return first != second


def _contents(sample: Any) -> Iterator[bytes]:
    """Yields the contents of a sample; nothing of objects other than numbers, texts, arrays, images and tensors."""
    if isinstance(sample, Mapping):
        sample = list(sample.values())
    if isinstance(sample, list | tuple):
        for part in sample:
            yield from _contents(part)
        return
    if isinstance(sample, Tensor):
        sample = sample.detach().cpu().contiguous().flatten().view(torch.uint8)
    array = np.asarray(sample)
    if not array.dtype.hasobject:
        yield array.tobytes()


def _whole(dataset: Any) -> Any:
    while True:
        if isinstance(dataset, Subset):
            dataset = dataset.dataset
        elif isinstance(dataset, ConcatDataset) and len({type(part) for part in dataset.datasets}) == 1:
            dataset = dataset.datasets[0]
        else:
            return dataset


def without_augmentation(train: Dataset[Any], val: Dataset[Any]) -> Dataset[Any]:
    """Returns the training data with the transforms of the validation data.

    Where a training data set, or one that it holds (a part of a ``ConcatDataset``, the data set of a ``Subset`` or of
    any wrapper), is of the class of a validation data set, it is copied with the transforms of that. Those are
    the attributes with ``transform`` or ``augment`` in their name, but not those of labels; and in a wrapper, which
    gets its samples from another data set, whatever can be called.

    Returns:
        A copy of the data set; the data set itself where there is nothing to change.
    """
    clean = _cleaned(train, [val], frozenset())
    return clean if len(clean) == len(train) else train  # type: ignore[arg-type]  # augmentation may add samples


def _cleaned(train: Any, others: list[Any], holders: frozenset[int]) -> Any:
    if id(train) in holders:  # a circle
        return train
    other = next((one for one in all_within(others) if type(one) is type(train)), None)
    inner = others if other is None else [part for parts in _held(other).values() for part in parts]
    changed: dict[str, Any] = {}
    for name, parts in _held(train).items():
        clean = [_cleaned(part, inner, holders | {id(train)}) for part in parts]
        if any(one is not part for one, part in zip(clean, parts, strict=True)):
            changed[name] = clean[0] if isinstance(vars(train)[name], Dataset) else clean
    if other is not None:
        changed |= _other_transforms(train, other)
    if not changed:
        return train
    copied = object.__new__(type(train))  # copy.copy asks for attributes, which a wrapper may hand on without an end
    vars(copied).update({**vars(train), **changed})
    return copied


def all_within(datasets: Iterable[Any], holders: frozenset[int] = frozenset()) -> Iterator[Any]:
    """Yields data sets and all that they hold.

    Args:
        datasets: Data sets.
        holders: ``id`` of those that hold them, which end a circle.
    """
    for dataset in datasets:
        if id(dataset) not in holders:
            yield dataset
            for parts in _held(dataset).values():
                yield from all_within(parts, holders | {id(dataset)})


def _held(dataset: Any) -> dict[str, list[Any]]:
    """Returns the data sets that a data set holds, by the attribute that holds one or a list of them."""
    attributes = _attributes(dataset).items()
    listed = {name: [value] if isinstance(value, Dataset) else value for name, value in attributes}
    return {
        name: list(value)
        for name, value in listed.items()
        if isinstance(value, (list, tuple)) and value and all(isinstance(part, Dataset) for part in value)
    }


def _attributes(dataset: Any) -> dict[str, Any]:
    return getattr(dataset, "__dict__", {})  # a list of samples has none


def _other_transforms(train: Any, other: Any) -> dict[str, Any]:
    is_wrapper = bool(_held(train))
    found = {}
    for name in {**_attributes(train), **_attributes(other)}:
        if not hasattr(train, name) or not hasattr(other, name) or _OTHER.search(name):
            continue
        own, theirs = getattr(train, name), getattr(other, name)
        is_named = _AUGMENTATION.search(name) and _is_setting(own) and _is_setting(theirs)
        if own is not theirs and (is_named or (is_wrapper and _is_called(own) and _is_called(theirs))):
            found[name] = theirs
    return found


def _is_setting(value: Any) -> bool:
    """Whether a value isn't data, such as samples that were transformed beforehand."""
    return _is_called(value) or isinstance(value, (bool, float))


def _is_called(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(callable, value))
    reads_data = isinstance(getattr(value, "__self__", None), Dataset)  # a method of the wrapped data set
    return value is None or (callable(value) and not reads_data)
