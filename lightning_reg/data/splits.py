"""Stratified, seeded subsets."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_reg.settings import SettingError, check_range

__all__ = ["stratified_split"]


def stratified_split(
    labels: Tensor, size: int | float, *, seed: int, name: str, classes: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Splits samples in two so that every class has the same share in both, as nearly as whole samples allow.

    Depends on the labels, the size and the seed alone: equal on every rank and in every run.

    Args:
        labels: (N,), class indices.
        size: Of the chosen part: a number of samples, or a fraction in (0, 1).
        seed: Which of all such splits.
        name: The argument that asked for it, for messages.
        classes: Names of the classes, for messages.

    Returns:
        Sorted positions of the chosen part and of the rest.

    Raises:
        SettingError: If ``size`` is out of its range or leaves a class without samples in either part.

    >>> chosen, rest = stratified_split(torch.tensor([0, 0, 1, 1]), 0.5, seed=0, name="val_size", classes=["a", "b"])
    >>> len(chosen), len(rest)
    (2, 2)
    """
    from sklearn.model_selection import train_test_split

    total = len(labels)
    count = chosen_count(size, total, name=name)
    per_class = torch.bincount(labels, minlength=len(classes))
    single = [classes[index] for index in (per_class == 1).nonzero().flatten().tolist()]
    if single or count < len(classes) or total - count < len(classes):
        reason = f"class {single[0]!r} has 1 sample" if single else f"there are {len(classes)} classes"
        raise SettingError(
            f"{name} must leave at least one sample of every class in both parts, but is {size} "
            f"({count} of {total} samples, and {reason})"
        )
    rest, chosen = train_test_split(torch.arange(total).numpy(), test_size=count, stratify=labels, random_state=seed)
    for part in (chosen, rest):
        missing = (torch.bincount(labels[torch.from_numpy(part)], minlength=len(classes)) == 0).nonzero().flatten()
        if len(missing):
            raise SettingError(
                f"{name} must leave at least one sample of every class in both parts, but is {size} ({count} of "
                f"{total} samples) and leaves none of {classes[int(missing[0])]!r} in one"
            )
    return torch.from_numpy(chosen).sort().values, torch.from_numpy(rest).sort().values


def chosen_count(size: int | float, total: int, *, name: str) -> int:
    """Returns the number of samples that a count or a fraction means.

    Args:
        size: A whole number of samples, or a fraction in (0, 1].
        total: How many there are.
        name: The argument, for messages.

    Raises:
        SettingError: If the size is out of its range or there are too few samples.

    >>> chosen_count(0.25, 8, name="train_size")
    2
    """
    if isinstance(size, float) and size > 1 and size.is_integer():
        size = int(size)  # which of a union's types a parser tries first is not for us to say
    if isinstance(size, float):
        check_range(name, size, low=0, high=1, low_open=True)
        return max(round(size * total), 1)
    if not 1 <= size <= total:
        raise SettingError(f"{name} must be in [1, {total}], the number of samples there are, but is {size}")
    return size
