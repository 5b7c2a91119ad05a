"""Audit of runs that haven't started."""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightning_reg.audit.contradictions import contradictions
from lightning_reg.audit.inventory import take_inventory
from lightning_reg.search.spaces.space import Space
from lightning_reg.settings import SettingError, as_patterns

__all__ = ["Prospect", "with_present", "without_contradictions"]


@dataclass
class Prospect:
    """A run that hasn't started, with everything that the audit inspects.

    Attributes:
        callbacks: Callbacks of the run.
        datamodule: Data module, or None.
        trainer: Trainer with the run's settings.
        optimizers: Optimizers that the module configures; empty if it can't configure them before training.
    """

    module: LightningModule
    callbacks: Sequence[Callback]
    datamodule: Any
    trainer: Trainer
    optimizers: list[Optimizer] = field(init=False)

    def __post_init__(self) -> None:
        self.optimizers = _optimizers_of(self.module)

    def contradictions(self) -> dict[str, str]:
        """Returns the contradictions in the run: a message with reason and remedy, by contradiction."""
        view = _View(list(self.callbacks), self.optimizers, self.datamodule, self.trainer)
        found = take_inventory(cast("Trainer", view), self.module)
        return {contradiction.what: str(contradiction) for contradiction in contradictions(found)}


class _View:
    """A view of a trainer as it would be during ``fit``: with optimizers."""

    train_dataloader = None

    def __init__(
        self, callbacks: list[Callback], optimizers: list[Optimizer], datamodule: Any, trainer: Trainer
    ) -> None:
        self.callbacks = callbacks
        self.optimizers = optimizers
        self.datamodule = datamodule
        self._trainer = trainer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


def without_contradictions(
    space: Space, contradictions_with: Callable[..., Mapping[str, str]]
) -> tuple[Space, list[str]]:
    """Removes the switches that the audit would warn about, and marks conflicting pairs.

    Args:
        contradictions_with: Function from names of switches to the contradictions in a run with these switches on, as
            returned by :meth:`Prospect.contradictions`. It raises a SettingError if they can't be on.

    Returns:
        The space, and notes about what was left out and why.

    Raises:
        SettingError: If a switch can't be on and isn't optional.
    """
    known = set(contradictions_with())
    alone: dict[str, set[str]] = {}
    left_out: list[str] = []
    notes: list[str] = []
    for name, switch in space.switches.items():
        try:
            found = contradictions_with(name)
        except SettingError as error:
            if not switch.is_optional:
                raise SettingError(f"switch {name!r}: {error}") from error
            found, reasons = {}, [str(error)]
        else:
            reasons = [sentence for what, sentence in found.items() if what not in known]
        alone[name] = set(found)
        if reasons:
            left_out.append(name)
            notes.append(f"{name} is left out: {reasons[0]}")
    kept = space.without(left_out) if left_out else space
    conflicts: set[frozenset[str]] = set()
    for first, second in combinations(kept.switches, 2):
        if not kept.are_compatible(first, second):
            continue
        try:
            found = contradictions_with(first, second)
        except SettingError as error:
            found = {str(error): str(error)}
        reasons = [sentence for what, sentence in found.items() if what not in known | alone[first] | alone[second]]
        if reasons:
            conflicts.add(frozenset((first, second)))
            notes.append(f"{first} and {second} are never tried together: {reasons[0]}")
    return replace(kept, conflicts=kept.conflicts | conflicts), notes


def with_present(space: Space, module: LightningModule) -> tuple[Space, list[str]]:
    """Resolves the layer types in a space to those that a module has.

    Args:
        space: Search space with ``present: [ReLU, GELU]`` in place of lists of types.

    Returns:
        The space without switches for which the module has no layer, and notes about what was left out.
    """
    there = {type(layer).__name__ for layer in module.modules()}
    switches, left_out, notes = {}, [], []
    for name, switch in space.switches.items():
        try:
            callbacks = [_present(entry, there) for entry in switch.callbacks]
        except _NoneThereError as error:
            left_out.append(name)
            notes.append(f"{name} is left out: the module has no layer of {error}")
            callbacks = list(switch.callbacks)
        switches[name] = replace(switch, callbacks=callbacks)
    made = replace(space, switches=switches)
    return (made.without(left_out) if left_out else made), notes


class _NoneThereError(ValueError):
    """Raised if a module has no layer of the given types."""


def _present(entry: Any, there: Collection[str]) -> Any:
    if isinstance(entry, Mapping):
        if set(entry) == {"present"}:
            kinds = as_patterns("present", entry["present"])
            found = [kind for kind in kinds if kind in there]
            if not found:
                raise _NoneThereError(", ".join(kinds))
            return found
        return {key: _present(value, there) for key, value in entry.items()}
    return entry


def _optimizers_of(module: LightningModule) -> list[Optimizer]:
    """Returns the optimizers that a module configures; empty if it can't configure them before training."""
    with contextlib.suppress(Exception):  # user code, which may depend on a running fit
        return list(_found(module.configure_optimizers()))
    return []


def _found(given: Any) -> list[Optimizer]:
    if isinstance(given, Optimizer):
        return [given]
    if isinstance(given, dict):
        return _found(given.get("optimizer"))
    if isinstance(given, (list, tuple)):
        return [optimizer for entry in given for optimizer in _found(entry)]
    return []
