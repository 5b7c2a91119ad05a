"""The trials of a search in Optuna's storage; trials of dead processes are proposed again."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage, _heartbeat
from optuna.trial import FrozenTrial, Trial, TrialState

from lightning_reg.search.spaces.space import Space
from lightning_reg.search.trials.first_trials import First
from lightning_reg.search.trials.sampler import PositionedSampler, position_of
from lightning_reg.search.trials.storage import Driver
from lightning_reg.search.trials.tried import Proposal, Tried
from lightning_reg.settings import SettingError

__all__ = ["Trials"]

_RANDOM = 5  # random cocktails between the first trials and those that TPE proposes


class Trials:
    """The trials of a search, in a persistent storage.

    Args:
        name: Name of the search in the storage.
        space: Search space that cocktails are proposed from.
        first: Cocktails to try first.
        prefers_less: Whether lower values of the metric are better.
        seed: Seed of the sampler.
        driver: Driver of this process.
        prunes: Whether a trial may be stopped after its first splits.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        space: Space,
        first: Sequence[First],
        *,
        prefers_less: bool,
        seed: int,
        driver: Driver,
        prunes: bool = False,
    ) -> None:
        self._space = space
        self._first = first
        self._driver = driver
        self._prefers_less = prefers_less
        self._study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="minimize" if prefers_less else "maximize",
            sampler=PositionedSampler(seed, startup=len(first) + _RANDOM),
            pruner=optuna.pruners.WilcoxonPruner(p_threshold=0.1) if prunes else optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        self._storage = storage

    def adopt_orphans(self) -> int:
        """Marks the trials of dead drivers as failed and enqueues them again; returns their number."""
        optuna.storages.fail_stale_trials(self._study)  # by heartbeat, if the storage has one
        has_heartbeat = _heartbeat.is_heartbeat_enabled(self._storage)
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            is_dead = self._driver.is_dead(trial.user_attrs.get("driver", ""))
            # All drivers of a journal share its folder: one without a lock file there has ended.
            if is_dead or (is_dead is None and not has_heartbeat):
                self._study.tell(trial.number, state=TrialState.FAIL)
        trials = self._study.get_trials(deepcopy=False)
        replaced = {trial.user_attrs.get("replaces") for trial in trials}
        orphans = [
            trial
            for trial in trials
            if trial.state == TrialState.FAIL and trial.number not in replaced and "twin" not in trial.user_attrs
        ]
        for orphan in orphans:
            self._study.enqueue_trial(
                # A trial without a name was killed while it was being proposed.
                orphan.params if "name" in orphan.user_attrs else orphan.system_attrs.get("fixed_params", {}),
                user_attrs={
                    "replaces": orphan.number,
                    "position": position_of(orphan, trials),
                    **{key: orphan.user_attrs[key] for key in ("first", "kind", "extra") if key in orphan.user_attrs},
                },
            )
        return len(orphans)

    def ask(self) -> Proposal:
        """Returns the next trial: an orphaned one, one of the first trials, or the sampler's proposal."""
        while True:
            trials = self._study.get_trials(deepcopy=False)
            if not any(trial.state == TrialState.WAITING for trial in trials):
                begun = {trial.user_attrs.get("first") for trial in trials}
                for first in self._first:
                    if first.name not in begun:
                        self.enqueue(first)
                        break
            trial = self._study.ask()
            trial.set_user_attr("driver", self._driver.id)
            if not self._is_twin(trial):
                return self._proposal(trial)
            trial.set_user_attr("twin", True)  # another driver has also started this first trial
            self._study.tell(trial, state=TrialState.FAIL)

    def enqueue(self, first: First, *, is_extra: bool = False) -> bool:
        """Enqueues a cocktail unless it was proposed before; returns whether it is waiting.

        Args:
            is_extra: Whether the trial doesn't count toward the budget.
        """
        for trial in self._study.get_trials(deepcopy=False):
            if trial.user_attrs.get("first") == first.name and trial.state != TrialState.FAIL:
                return trial.state == TrialState.WAITING
        parameters = {} if first.cocktail is None else self._space.parameters(first.cocktail)
        attributes: dict[str, Any] = {"first": first.name, "kind": first.kind, **({"extra": True} if is_extra else {})}
        self._study.enqueue_trial(parameters, user_attrs=attributes)
        return True

    def _is_twin(self, trial: Trial) -> bool:
        name = trial.user_attrs.get("first")
        return name is not None and any(
            other.number < trial.number and other.user_attrs.get("first") == name and other.state != TrialState.FAIL
            for other in self._study.get_trials(deepcopy=False)
        )

    def _proposal(self, trial: Trial) -> Proposal:
        trials = self._study.get_trials(deepcopy=False)
        position = position_of(trials[trial.number], trials)
        kind = trial.user_attrs.get("kind", "search")
        cocktail = None if kind == "base" else self._space.suggest(trial)
        name = trial.user_attrs.get("first") or f"trial {position}"
        trial.set_user_attr("position", position)
        trial.set_user_attr("cocktail", cocktail)
        trial.set_user_attr("name", name)  # set last: it marks the proposal as complete
        return Proposal(position, kind, name, cocktail, trial)

    def heartbeat(self, proposals: Sequence[Proposal]) -> None:
        """Records a heartbeat for trials in progress, if the storage supports it."""
        if _heartbeat.is_heartbeat_enabled(self._storage):
            for proposal in proposals:
                self._storage.record_heartbeat(proposal.trial._trial_id)  # type: ignore[attr-defined]  # it has one

    def should_prune(self, proposal: Proposal, split: int, value: float) -> bool:
        """Returns whether to stop a trial, given its value on a split."""
        proposal.trial.report(value, split)
        return proposal.trial.should_prune()

    def tell(
        self,
        proposal: Proposal,
        values: Sequence[float],
        *,
        seconds: float,
        step_seconds: float | None = None,
        excess: float | None = None,
        message: str = "",
    ) -> None:
        """Records the outcome of a trial.

        Args:
            values: Value of the metric on each finished split.
            seconds: Duration of all its runs in seconds.
            step_seconds: Duration of a training step in seconds.
            excess: Step duration above the limit, in steps of the plain run; None if there is no limit.
            message: Reason why it failed or was pruned; empty otherwise.
        """
        trial = proposal.trial
        trial.set_user_attr("values", list(values))
        trial.set_user_attr("seconds", seconds)
        trial.set_user_attr("step_seconds", step_seconds)
        trial.set_user_attr("excess", excess)
        if excess is not None:
            trial.set_constraint("step_time", excess)
        if message:
            trial.set_user_attr("message", message)
            self._study.tell(trial, state=TrialState.PRUNED)  # ranks below all with a value
        else:
            self._study.tell(trial, math.fsum(values) / len(values))

    def release(self, proposals: Sequence[Proposal]) -> None:
        """Marks unfinished trials as failed, so that they are proposed again."""
        for proposal in proposals:
            self._study.tell(proposal.trial, state=TrialState.FAIL, skip_if_finished=True)

    @property
    def tried(self) -> list[Tried]:
        """Finished trials, by position."""
        ended = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return sorted(map(_tried, ended), key=lambda result: result.position)

    @property
    def begun(self) -> int:
        """Number of the budget's trials that any driver has proposed, without orphaned ones."""
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        proposed = self._study.get_trials(deepcopy=False, states=states)
        return sum("extra" not in trial.user_attrs for trial in proposed)

    def best(self, tried: Sequence[Tried], *, step_times: float | None = None) -> Tried | None:
        """Returns the best trial within the limit on step durations; None if there is none with a value.

        Args:
            tried: Finished trials, including the plain one.
            step_times: Largest step duration, as a multiple of the plain run's. If None, only the trials' own
                ``excess`` is checked, which is missing for trials that finished before the plain one.
        """
        plain = next((result.step_seconds for result in tried if result.kind == "plain"), None)
        most = math.inf if step_times is None or plain is None else step_times * plain
        valued = [
            result
            for result in tried
            if result.value is not None and (result.excess or 0.0) <= 0 and (result.step_seconds or 0.0) <= most
        ]
        sign = 1 if self._prefers_less else -1
        return min(valued, key=lambda result: (sign * float(result.value or 0.0), result.position), default=None)

    def importances(self) -> dict[str, float]:
        """Returns the importance of each switch and strength by conditional PED-ANOVA; empty with too few trials."""
        ended = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len([trial for trial in ended if trial.params]) < 2 * _RANDOM:
            return {}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Some regimes for parameter")  # options tried at most once
                found = optuna.importance.get_param_importances(self._study)
        except (ValueError, RuntimeError):  # all values or all parameters are equal
            return {}
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def _tried(trial: FrozenTrial) -> Tried:
    """Returns a finished trial.

    Raises:
        SettingError: If something else was written into the storage.
    """
    attributes = trial.user_attrs
    numbers = {name: attributes.get(name) for name in ("step_seconds", "excess")}
    try:
        return Tried(
            position=int(attributes["position"]),
            kind=attributes.get("kind", "search"),
            name=attributes["name"],
            cocktail=None if attributes["cocktail"] is None else dict(attributes["cocktail"]),
            value=trial.value if trial.state.name == "COMPLETE" else None,
            values=tuple(map(float, attributes.get("values", ()))),
            seconds=float(attributes.get("seconds", 0.0)),
            **{name: None if number is None else float(number) for name, number in numbers.items()},
            parameters=dict(trial.params),
            message=attributes.get("message", ""),
        )
    except (KeyError, RuntimeError, TypeError, ValueError) as error:  # Optuna's for a trial of several values, too
        reason = f"{type(error).__name__}: {error}"
        raise SettingError(
            f"trial {trial.number} of the search's storage can't be read: {reason}; give another --output"
        ) from error
