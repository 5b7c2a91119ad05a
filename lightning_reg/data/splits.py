"""Stratified, seeded subsets and folds."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.settings import SettingError, check_range

__all__ = ["check_size", "chosen_count", "stratified_folds", "stratified_split"]


def stratified_split(
    labels: Tensor, size: int | float, *, seed: int, name: str, classes: Sequence[str], keeps_rest: bool = True
) -> tuple[Tensor, Tensor]:
    """Splits samples in two so that every class has the same share in both, as nearly as whole samples allow.

    Depends on the labels, the size and the seed alone: equal on every rank and in every run.

    Args:
        labels: (N,), class indices.
        size: Size of the chosen part: a number of samples, or a fraction in (0, 1].
        seed: Seed of the split.
        name: Name of the size's argument, for messages.
        classes: Names of the classes, for messages.
        keeps_rest: Whether the rest is used too, and so needs samples of every class.

    Returns:
        Sorted positions of the chosen part and of the rest.

    Raises:
        SettingError: If ``size`` is out of range or leaves a class without samples in a part that is used.

    >>> chosen, rest = stratified_split(torch.tensor([0, 0, 1, 1]), 0.5, seed=0, name="val_size", classes=["a", "b"])
    >>> len(chosen), len(rest)
    (2, 2)
    """
    count = chosen_count(size, len(labels), name=name)
    available = torch.bincount(labels, minlength=len(classes))
    shares = _apportioned(available, count)
    missing = (shares == 0) | ((available - shares == 0) & keeps_rest)
    if missing.any():
        index = int(missing.nonzero()[0])
        hint = "; a fraction must be above 0 and below 1" if isinstance(size, float) and size >= 1 else ""
        raise SettingError(
            f"{name} must leave at least one sample of every class{' in both parts' if keeps_rest else ''}, but is "
            f"{size}: {count} of {len(labels)} samples, and {int(shares[index])} of the {int(available[index])} of "
            f"class {classes[index]!r}{hint}"
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, share in enumerate(shares.tolist()):
        members = (labels == label).nonzero().flatten()
        chosen[members[torch.randperm(len(members), generator=generator)[:share]]] = True
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()


def stratified_folds(labels: Tensor, folds: int, *, seed: int, classes: Sequence[str]) -> Tensor:
    """Returns the fold of each sample, (N,); every class is spread evenly over the folds, up to one sample.

    Args:
        labels: (N,), class indices.
        folds: Number of folds, at least 2.
        seed: Seed of the partition.
        classes: Names of the classes, for messages.

    Raises:
        SettingError: If a class has fewer samples than there are folds.

    >>> stratified_folds(torch.tensor([0, 0, 1, 1]), 2, seed=0, classes=["a", "b"]).view(2, 2).sum(1)
    tensor([1, 1])
    """
    counts = torch.bincount(labels, minlength=len(classes))
    rarest = int(counts.argmin())
    if counts[rarest] < folds:
        raise SettingError(
            f"folds must be at most {int(counts[rarest])}, the samples of class {classes[rarest]!r}, but is {folds}"
        )
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    fold = torch.empty_like(labels)
    fold[by_class] = torch.arange(len(labels)) % folds  # dealt like cards, class by class
    return fold


def _apportioned(available: Tensor, count: int) -> Tensor:
    """Apportions a number of samples among classes by their size; the largest remainders are rounded up."""
    exact = available * (count / int(available.sum()))
    shares = exact.floor().long()
    remainders = (exact - shares).sort(descending=True, stable=True).indices
    shares[remainders[: count - int(shares.sum())]] += 1
    return shares


def check_size(name: str, size: int | float) -> None:
    """Raises unless a size is a number; its range matters only where something is held out.

    Args:
        name: Name of the argument, for messages.

    Raises:
        SettingError: If the size is no number.

    >>> check_size("val_size", "abc")
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: val_size must be a number of samples or a fraction, but is 'abc'
    """
    if isinstance(size, bool) or not isinstance(size, (int, float)):
        raise SettingError(f"{name} must be a number of samples or a fraction, but is {size!r}")


def chosen_count(size: int | float, total: int, *, name: str) -> int:
    """Returns the number of samples for a count or a fraction.

    Args:
        size: A whole number of samples, or a fraction in (0, 1].
        total: Number of available samples.
        name: Name of the argument, for messages.

    Raises:
        SettingError: If the size is out of range or there are too few samples.

    >>> chosen_count(0.25, 8, name="train_size")
    2
    """
    check_size(name, size)
    if isinstance(size, float) and size > 1 and size.is_integer():
        size = int(size)  # the parser may try float first for the union of int and float
    if isinstance(size, float):
        check_range(name, size, low=0, high=1, low_open=True)
        return max(round(size * total), 1)
    if not 1 <= size <= total:
        raise SettingError(f"{name} must be in [1, {total}], the number of samples there are, but is {size}")
    return size
