"""A search from its first trial to its output files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lightning_reg.search.definition import SearchDefinition
from lightning_reg.search.folder import SearchFolder
from lightning_reg.search.outcome import Confirmation, SearchOutcome
from lightning_reg.search.spaces.space import Cocktail
from lightning_reg.search.trials.first_trials import First, alone, first_trials
from lightning_reg.search.trials.running import Budget, Goal, do_trials
from lightning_reg.search.trials.storage import Driver, silenced, stored
from lightning_reg.studies.execution import Perform
from lightning_reg.studies.executor import Executor
from lightning_reg.studies.outcome import Failure
from lightning_reg.studies.runs import Run, key_of
from lightning_reg.studies.store import Store

if TYPE_CHECKING:
    from lightning_reg.search.trials.trials import Trials

__all__ = ["SearchJob"]


class SearchJob(ABC):
    """Base class of searches; a subclass creates and performs the runs.

    Args:
        definition: Settings of the search.
        storage: URL of a database that several drivers share; the journal in the folder if None.
        quiet: Whether to hide progress bars.
    """

    has_base = False
    """Whether the base differs from the plain run, in which all switches are off."""

    command = ""
    """Command that resumes the search; empty if it was started from Python."""

    def __init__(
        self, definition: SearchDefinition, folder: SearchFolder, *, storage: str | None = None, quiet: bool = False
    ) -> None:
        self.definition = definition
        self.folder = folder
        self.storage = storage
        self.quiet = quiet
        self.space = definition.space
        self.splits = definition.folds or 1
        self.notes: list[str] = []

    @property
    @abstractmethod
    def perform(self) -> Perform:
        """Function that performs a run of a trial."""

    @abstractmethod
    def rehearse(self) -> None:
        """Validates the settings, and sets what depends on the module and its data: space, splits, notes."""

    @abstractmethod
    def runs(self, name: str, cocktail: Cocktail | None) -> list[Run]:
        """Returns the runs of a trial, one per split.

        Args:
            name: Name of the trial.
            cocktail: The cocktail; None for the unchanged base.
        """

    @abstractmethod
    def executor(self) -> Executor:
        """Returns the executor of runs."""

    @abstractmethod
    def confirm(self, outcome: SearchOutcome, executor: Executor) -> tuple[Confirmation | None, list[Failure]]:
        """Evaluates the best cocktail with fresh seeds; returns the confirmation and the failed runs."""

    @abstractmethod
    def hand_over(self, outcome: SearchOutcome) -> None:
        """Writes the results of the search."""

    def versions(self) -> dict[str, str]:
        """Returns versions of the software and hardware in use, by name."""
        return {}

    def do(self) -> tuple[SearchOutcome, list[Failure]]:
        """Runs or resumes the search; returns its outcome and the failed runs of the confirmation.

        Raises:
            SettingError: If a setting is invalid, or the disk is full.
            KeyboardInterrupt: When interrupted; finished runs are kept.
        """
        self.folder.check()
        if self.storage is not None:
            with stored(self.folder.path, self.storage):  # checks that it can be reached, before anything is written
                pass
        self.rehearse()
        with self.executor() as executor:  # a cluster that can't be reached leaves no folder behind
            return self._do(executor)

    def _do(self, executor: Executor) -> tuple[SearchOutcome, list[Failure]]:
        from lightning_reg.search.trials.trials import Trials  # which imports Optuna

        self.folder.make()
        driver = Driver(self.folder.path)
        failures: list[Failure] = []
        with (
            self.folder.reported(),
            driver.alive(),
            silenced(),
            stored(self.folder.path, self.storage) as storage,
        ):
            trials = Trials(
                storage,
                f"{self.definition.name}-{key_of(self.folder.parts)}",
                self.space,
                first_trials(self.space, self.definition.trials, has_base=self.has_base),
                prefers_less=self.definition.prefers_less,
                seed=self.definition.seed,
                driver=driver,
                prunes=self.definition.prune,
            )
            outcome = self._search(trials, executor)
            self.hand_over(outcome)  # before the confirmation, which may be interrupted
            if self.definition.confirm and outcome.best is not None and outcome.best.cocktail:
                outcome = self._search(trials, executor, only=alone(self.space))
                confirmation, failures = self.confirm(outcome, executor)
                outcome = replace(outcome, confirmation=confirmation)
                self.hand_over(outcome)
        return outcome, failures

    def _search(self, trials: Trials, executor: Executor, *, only: Sequence[First] = ()) -> SearchOutcome:
        definition = self.definition
        do_trials(
            trials,
            Store(self.folder.path, definition.name),
            self.runs,
            self.perform,
            executor,
            Goal(definition.metric, definition.prefers_less, self.splits, prunes=definition.prune),
            Budget(definition.trials, definition.minutes, definition.max_step_time),
            quiet=self.quiet,
            only=only,
        )
        tried = trials.tried
        return SearchOutcome(
            name=definition.name,
            title=definition.title,
            space=self.space,
            metric=definition.metric,
            prefers_less=definition.prefers_less,
            splits=self.splits,
            seed=definition.seed,
            tried=tried,
            best=trials.best(tried, step_times=definition.max_step_time),
            importances=trials.importances(),
            notes=self.notes,
            command=self.command,
            versions=self.versions(),
        )
