"""The sampler: TPE that repeats no trial, reseeded each time, so that interruptions don't change a search's course."""

import hashlib
from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

__all__ = ["PositionedSampler", "position_of"]

_DRAWS = 16  # by TPE, then uniformly
_BEGUN = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


class PositionedSampler(BaseSampler):
    """TPE whose random numbers depend only on the search's seed and the trial's position.

    TPE proposes a good combination of switches without strengths over and over. The result would be the same, and the
    repetitions would crowd out other good trials in its model, so these proposals are drawn again.

    Args:
        seed: Seed of the search.
        startup: Number of random trials before TPE fits its model.
    """

    def __init__(self, seed: int, *, startup: int) -> None:
        self._seed = seed
        self._startup = startup
        self._sampler = self._made(0)
        self._uniform = RandomSampler()

    def _made(self, position: int) -> TPESampler:
        return TPESampler(
            seed=_seed_of(self._seed, position),
            n_startup_trials=self._startup,
            multivariate=True,
            group=True,
            constant_liar=True,
        )

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Reseeds the sampler for a new trial."""
        position = position_of(trial, study.get_trials(deepcopy=False))
        self._sampler = self._made(position)
        self._uniform = RandomSampler(_seed_of(self._seed, position))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Returns the distributions of the parameters that are sampled jointly."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Samples parameters jointly: those of a new trial, unless all draws repeat earlier ones."""
        begun = study.get_trials(deepcopy=False, states=_BEGUN)
        # A trial's parameters are those of its switches that are on. Without a name it is still being proposed.
        earlier = [other.params for other in begun if other.params and "name" in other.user_attrs]
        drawn: dict[str, Any] = {}
        for draw in range(2 * _DRAWS):
            if draw < _DRAWS:
                drawn = self._sampler.sample_relative(study, trial, search_space)
            else:
                drawn = {
                    name: self._uniform.sample_independent(study, trial, name, distribution)
                    for name, distribution in search_space.items()
                }
            # TPE leaves its first trials, and all parameters that no trial has had, to sample_independent.
            if drawn and not any(parameters.items() <= drawn.items() for parameters in earlier):
                break
        return drawn

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Samples one parameter independently."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Processes a finished trial."""
        self._sampler.after_trial(study, trial, state, values)


def _seed_of(seed: int, position: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{position}".encode()).digest()[:4], "big")


def position_of(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> int:
    """Returns the position of a trial in the search; a replacement has the position of its orphan.

    Args:
        trials: All trials of the search.
    """
    if "replaces" in trial.user_attrs:
        return int(trial.user_attrs["position"])
    extra = sum(
        other.number < trial.number and ("replaces" in other.user_attrs or "twin" in other.user_attrs)
        for other in trials
    )
    return trial.number - extra
