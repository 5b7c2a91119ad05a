"""Execution of trials until the budget of a search is used up."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lightning_reg.search.spaces.space import Cocktail
from lightning_reg.search.trials.first_trials import First
from lightning_reg.search.trials.storage import silenced
from lightning_reg.search.trials.tried import Proposal, Tried
from lightning_reg.settings import SettingError, check_choice
from lightning_reg.studies.execution import Attempt, Perform, attempt_of, submit
from lightning_reg.studies.executor import Executor
from lightning_reg.studies.outcome import Result
from lightning_reg.studies.runs import Run
from lightning_reg.studies.store import Store, full_disk, is_disk_full
from lightning_reg.text import duration

if TYPE_CHECKING:
    from lightning_reg.search.trials.trials import Trials  # which imports Optuna

__all__ = ["STEP_SECONDS", "Budget", "Goal", "do_trials"]

STEP_SECONDS = "seconds per step"
"""Key among a run's metrics for the duration of a training step."""

_HEARTBEAT = 15.0  # seconds


@dataclass(frozen=True)
class Budget:
    """The budget of a search.

    Attributes:
        trials: Largest number of trials.
        minutes: Time in minutes after which no new trial starts; unlimited if None.
        step_times: Largest duration of a training step, as a multiple of the plain run's; unlimited if None.
    """

    trials: int
    minutes: float | None = None
    step_times: float | None = None


@dataclass(frozen=True)
class Goal:
    """The objective of a search.

    Attributes:
        metric: Name of the metric, as logged.
        prefers_less: Whether lower values of the metric are better.
        splits: Number of splits, or repetitions, that a trial is evaluated on.
        prunes: Whether a trial may be stopped after its first splits.
    """

    metric: str
    prefers_less: bool
    splits: int
    prunes: bool = False


MakeRuns = Callable[[str, Cocktail | None], Sequence[Run]]
"""Function from a trial's name and cocktail to its runs, one per split."""


@dataclass
class _Trial:
    """A trial in progress.

    Attributes:
        runs: Runs of the trial, one per split.
        results: Results of the finished splits.
        future: Attempt at the current split; None if none is running.
    """

    proposal: Proposal
    runs: Sequence[Run]
    results: list[Result] = field(default_factory=list)
    future: Future[Attempt] | None = None

    @property
    def run(self) -> Run:
        return self.runs[len(self.results)]


@dataclass
class _Loop:
    """State of the execution loop.

    Attributes:
        extra: Number of waiting trials outside the budget; None while the budget's own trials are executed.
        began: Start time of the loop.
        durations: Durations of the finished trials in seconds.
    """

    trials: Trials
    store: Store
    make_runs: MakeRuns
    perform: Perform
    executor: Executor
    goal: Goal
    budget: Budget
    active: list[_Trial] = field(default_factory=list)
    extra: int | None = None
    began: float = field(default_factory=time.monotonic)
    durations: list[float] = field(default_factory=list)

    def do(self, only: Sequence[First], *, quiet: bool) -> None:
        """Executes trials: of the given cocktails, or those of the budget if none are given."""
        from tqdm import tqdm

        self.trials.adopt_orphans()
        total, done = self.budget.trials, min(self.trials.begun, self.budget.trials)
        if only:
            total, done = sum(self.trials.enqueue(first, is_extra=True) for first in only), 0
            self.extra = total
            if not total:
                return
        tried = self.trials.tried
        beat = time.monotonic()
        with tqdm(total=total, initial=done, desc=self.store.name, unit="trial", disable=quiet, smoothing=0) as bar:
            while self.active or self.may_begin():
                ended = [*self.filled(), *self.collected()]
                tried += ended
                for candidate in ended:
                    _check_plain(candidate)
                    bar.update()
                if ended:
                    bar.set_postfix_str(self.progress(tried))
                if time.monotonic() - beat > _HEARTBEAT:
                    beat = time.monotonic()
                    self.trials.heartbeat([candidate.proposal for candidate in self.active])

    def may_begin(self) -> bool:
        if self.extra is not None:
            return self.extra > 0
        return self.trials.begun < self.budget.trials and self.has_time()

    def has_time(self) -> bool:
        return self.budget.minutes is None or time.monotonic() - self.began < 60 * self.budget.minutes

    def filled(self) -> Iterator[Tried]:
        """Starts trials until all slots are busy; yields those that are finished already."""
        while len(self.active) < self.executor.slots and self.may_begin():
            yield from self.begin()

    def collected(self) -> Iterator[Tried]:
        """Waits up to a second for splits to finish; yields the trials that finished with them."""
        futures = [candidate.future for candidate in self.active if candidate.future is not None]
        for future in wait(futures, timeout=1.0, return_when=FIRST_COMPLETED).done:
            yield from self.settle(next(candidate for candidate in self.active if candidate.future is future))

    def begin(self) -> Iterator[Tried]:
        """Proposes a trial, and submits its first split without a stored result."""
        if self.extra is not None:
            self.extra -= 1
        proposal = self.trials.ask()
        trial = _Trial(proposal, self.make_runs(proposal.name, proposal.cocktail))
        self.active.append(trial)
        yield from self.go_on(trial)

    def go_on(self, trial: _Trial) -> Iterator[Tried]:
        """Submits the next split without a stored result, or ends the trial if none is left."""
        while len(trial.results) < len(trial.runs) and (known := self.store.result(trial.run)) is not None:
            if not self.take(trial, known):
                yield self.ended(trial)
                return
        if len(trial.results) == len(trial.runs):
            self.tell(trial, "")
            yield self.ended(trial)
            return
        self.store.prepare(trial.run)
        trial.future = submit(trial.run, self.store, self.perform, self.executor)

    def take(self, trial: _Trial, result: Result) -> bool:
        """Adds the result of a split; returns whether the trial continues."""
        check_choice("metric", self.goal.metric, [name for name in result.metrics if name != STEP_SECONDS])
        value = result.metrics[self.goal.metric]
        split = len(trial.results)
        trial.results.append(result)
        if not math.isfinite(value):
            self.tell(trial, f"diverged: {self.goal.metric} is {value} on split {split}")
            return False
        if self.goal.prunes and self.trials.should_prune(trial.proposal, split, value):
            self.tell(trial, f"pruned after {split + 1} of {len(trial.runs)} splits")
            return False
        return True

    def tell(self, trial: _Trial, message: str) -> None:
        values = [result.metrics[self.goal.metric] for result in trial.results]
        steps = [result.metrics[STEP_SECONDS] for result in trial.results if STEP_SECONDS in result.metrics]
        step = statistics.median(steps) if steps else None
        excess = None
        if self.budget.step_times is not None and step is not None:
            plain = step if trial.proposal.kind == "plain" else self.plain_step()
            excess = None if plain is None else step / plain - self.budget.step_times
        seconds = math.fsum(result.seconds for result in trial.results)
        self.trials.tell(
            trial.proposal,
            [value for value in values if math.isfinite(value)],
            seconds=seconds,
            step_seconds=step,
            excess=excess,
            message=message,
        )
        self.durations.append(seconds)

    def plain_step(self) -> float | None:
        """Returns the step duration of the plain run; None until it has finished, here or in another driver."""
        return next((result.step_seconds for result in self.trials.tried if result.kind == "plain"), None)

    def ended(self, trial: _Trial) -> Tried:
        self.active.remove(trial)
        return next(candidate for candidate in self.trials.tried if candidate.position == trial.proposal.position)

    def settle(self, trial: _Trial) -> Iterator[Tried]:
        """Processes the finished attempt at a split."""
        attempt, run = attempt_of(trial.future), trial.run  # type: ignore[arg-type]  # it was submitted
        trial.future = None
        if attempt.is_disk_full:
            raise full_disk(self.store.folder)
        if attempt.result is None:
            self.store.write_failure(run, attempt.message, attempt.details)
            self.tell(trial, attempt.message)
            yield self.ended(trial)
            return
        self.store.write_result(run, attempt.result)
        yield from self.go_on(trial)

    def give_up(self) -> None:
        """Cancels the trials in progress, so that the next driver can repeat them."""
        self.executor.close(at_once=True)
        for trial in self.active:
            if trial.future is not None and not self.store.has_result(trial.run):
                self.store.discard(trial.run)
        with contextlib.suppress(Exception), silenced():  # the next driver detects trials that can't be released now
            self.trials.release([candidate.proposal for candidate in self.active])

    def progress(self, tried: Sequence[Tried]) -> str:
        """Describes the best trial so far and the remaining time."""
        from lightning_reg.search.words import shown_value

        best = self.trials.best(tried, step_times=self.budget.step_times)
        if best is None:
            return ""
        left = self.left()
        shown = f"best {shown_value(self.goal.metric, best.value)}: {best.name}"
        return f"{shown}; about {duration(left)} left" if left else shown

    def left(self) -> float | None:
        """Returns the estimated time for the rest of the budget in seconds; None if unknown."""
        if not self.durations or self.extra is not None:
            return None
        rest = max(self.budget.trials - self.trials.begun, 0) + len(self.active)
        by_trials = rest * statistics.fmean(self.durations) / self.executor.slots
        if self.budget.minutes is None:
            return by_trials
        return max(min(by_trials, 60 * self.budget.minutes - (time.monotonic() - self.began)), 0.0)


def do_trials(
    trials: Trials,
    store: Store,
    make_runs: MakeRuns,
    perform: Perform,
    executor: Executor,
    goal: Goal,
    budget: Budget,
    *,
    quiet: bool = False,
    only: Sequence[First] = (),
) -> None:
    """Executes trials until the budget is used up.

    Args:
        trials: Trials of the search.
        store: Store for the results of runs.
        make_runs: Function that returns the runs of a trial.
        perform: Function that performs a run.
        goal: Objective of the search.
        budget: Budget of the search.
        quiet: Whether to hide the progress bar.
        only: Cocktails to try instead of the sampler's, outside the budget.

    Raises:
        SettingError: If the disk is full, the metric isn't logged, or the plain trial fails.
        KeyboardInterrupt: When interrupted; finished runs are kept.
    """
    loop = _Loop(trials, store, make_runs, perform, executor, goal, budget)
    try:
        with silenced():
            loop.do(only, quiet=quiet)
    except BaseException as error:
        loop.give_up()
        if isinstance(error, Exception) and is_disk_full(error, store.folder):
            raise full_disk(store.folder) from error
        raise


def _check_plain(tried: Tried) -> None:
    if tried.kind == "plain" and tried.value is None:
        raise SettingError(f"the base without any of the space's switches must train, but failed: {tried.message}")
