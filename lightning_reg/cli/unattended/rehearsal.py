"""Rehearsal of a search before its first trial: logged metrics, number of samples, and incompatible techniques.

Module, data and trainer are created as in a trial; one batch is used for training and one for validation.
"""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from lightning_reg.cli.unattended.fitting import silence
from lightning_reg.cli.unattended.trial import Fits
from lightning_reg.data import InMemoryData
from lightning_reg.search.overlay import absent_settings, names_of, with_cocktail
from lightning_reg.search.prospects import Prospect, with_present, without_contradictions
from lightning_reg.search.spaces.space import Space
from lightning_reg.settings import SettingError, did_you_mean

__all__ = ["Rehearsal", "fitting_space"]


@dataclass(frozen=True)
class Rehearsal:
    """Findings of a rehearsal.

    Attributes:
        metrics: Names of the metrics logged in validation.
        samples: Number of training samples; None if the data set has no length.
        has_test: Whether there is a test split.
        space: Search space, with the pairs of switches that contradict each other.
        notes: Messages about what was removed from the space, and why.
    """

    metrics: tuple[str, ...]
    samples: int | None
    has_test: bool
    space: Space
    notes: tuple[str, ...]


class _Counted(Callback):
    """Records the number of training samples."""

    samples: int | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dataset = getattr(trainer.train_dataloader, "dataset", None)
        self.samples = len(dataset) if isinstance(dataset, Sized) else None


class Rehearsed(Fits):
    """Creates the run of the base, and the runs that switches change it to."""

    def __init__(self, space: Space, base: Mapping[str, Any]) -> None:
        super().__init__()
        self.space = space
        self.base = base
        self._made: dict[str, Prospect] = {}

    @override
    def further_callbacks(self, callbacks: Sequence[Callback]) -> list[Callback]:
        self._callbacks = list(callbacks)
        self._counted = _Counted()
        return [self._counted]

    def rehearse(self) -> Rehearsal:
        """Trains the plain run for one batch, and inspects the runs that the switches would make of it."""
        settings = with_cocktail(self.space, self.base, {})
        settings["trainer"] |= {
            "max_epochs": 1,
            "max_steps": -1,
            "min_epochs": None,
            "min_steps": None,
            "check_val_every_n_epoch": 1,
            "limit_train_batches": 1,
            "limit_val_batches": 1,
            "num_sanity_val_steps": 0,
            "enable_checkpointing": False,
        }
        with silence():
            self.make(settings)
            if not is_overridden("validation_step", self.model):
                raise SettingError("the base must have a validation_step, by which trials are judged, but has none")
            self.trainer.fit(self.model, datamodule=self.datamodule)
            measured = self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
            samples, has_test = self._counted.samples, self._has_test()
            self.space, absent = with_present(self.space, self.model)
            space, notes = without_contradictions(self.space, lambda *names: self._prospect(*names).contradictions())
        metrics = tuple(name for metrics in measured for name in metrics)
        return Rehearsal(metrics, samples, has_test, space, (*absent, *notes))

    def _has_test(self) -> bool:
        if isinstance(self.datamodule, InMemoryData):
            return self.datamodule.evaluation_dataloader("test") is not None
        has_loader = self.datamodule is not None and is_overridden("test_dataloader", self.datamodule)
        return has_loader and is_overridden("test_step", self.model)

    def _prospect(self, *names: str) -> Prospect:
        """Returns the run with some switches on at their usual values, reusing parts of other runs where possible."""
        key = " ".join(names)
        if key not in self._made:
            changed = [self._sections(name) for name in names]
            if len(names) == 2 and not changed[0] & changed[1]:
                self._made[key] = self._joined(self._prospect(names[0]), self._prospect(names[1]), changed[1])
            elif names and not any(changed):
                self._made[key] = self._of_callbacks(names)
            else:
                self._made[key] = self._of_settings(names)
        return self._made[key]

    def _sections(self, name: str) -> set[str]:
        """Returns the sections of a configuration that a switch changes."""
        switch = self.space.switches[name]
        return {setting.partition(".")[0] for setting in (*switch.settings, *switch.without)}

    def _joined(self, first: Prospect, second: Prospect, changed: set[str]) -> Prospect:
        """Combines two runs that change different sections."""
        plain = self._prospect()
        added: list[Callback] = [callback for callback in second.callbacks if callback not in plain.callbacks]
        joined = replace(first, callbacks=[*first.callbacks, *added])
        if "model" in changed:
            joined = replace(joined, module=second.module)
        if "data" in changed:
            joined = replace(joined, datamodule=second.datamodule)
        return replace(joined, trainer=second.trainer) if "trainer" in changed else joined

    def _of_settings(self, names: tuple[str, ...]) -> Prospect:
        base = list(self._prospect().callbacks) if names else []
        cocktail = {name: self.space.switches[name].usual() for name in names}
        self.make(with_cocktail(self.space, self.base, cocktail))
        # The base's callbacks are the same objects in every run, to distinguish them from those that switches add.
        callbacks = [*base, *self._callbacks[len(base) :]]
        return Prospect(self.model, callbacks, self.datamodule, self.trainer)

    def _of_callbacks(self, names: tuple[str, ...]) -> Prospect:
        """Returns the run of switches that only add callbacks: module and data stay those of the plain run."""
        plain = self._prospect()
        cocktail = {name: self.space.switches[name].usual() for name in names}
        made = with_cocktail(self.space, self.base, cocktail)
        count = len(with_cocktail(self.space, self.base, {})["trainer"]["callbacks"] or [])
        settings = with_cocktail(self.space, self.base, {})
        settings["trainer"]["callbacks"] = made["trainer"]["callbacks"][count:]
        self.config = self.parse(settings)
        trainer = self.parser.instantiate_classes(self.config)["fit"]["trainer"]
        return replace(plain, callbacks=[*plain.callbacks, *trainer["callbacks"]])


def fitting_space(space: Space, base: Mapping[str, Any]) -> tuple[Space, list[str]]:
    """Removes the optional switches that don't apply to a base; returns the space and notes about what was removed.

    Args:
        space: The search space as defined in its file.
        base: Settings of the base.

    Raises:
        SettingError: If a switch that isn't optional sets a setting that the base doesn't have.
    """
    notes, left_out = [], set()
    for switch in space.switches.values():
        absent = absent_settings(switch, base)
        if not absent:
            continue
        if not switch.is_optional:
            hint = did_you_mean(absent[0], names_of(base))
            raise SettingError(f"switch {switch.name!r} sets {absent[0]}, which the base hasn't{hint}")
        notes.append(f"{switch.name} is left out: the base has no {absent[0]}")
        left_out.add(switch.name)
    return (space.without(left_out) if left_out else space), notes
