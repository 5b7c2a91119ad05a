"""Every callback on every project trains it and acts, or refuses in one sentence."""

from itertools import product

import pytest

from lightning_reg import callbacks
from lightning_reg.settings import SettingError
from tests.foreign.attached import NAMES, PUBLIC, make, only_watches
from tests.foreign.fitting import PROJECTS, counts_of, differences, fit, fit_or_refusal, fitted_plainly, is_finite
from tests.foreign.refusals import may_refuse

# One or two of each place in the training step; the others are on every fourth project where there is little time.
EVERYWHERE = {
    "ActivityPenalty",
    "BatchMixing",
    "BestWeightsEarlyStopping",
    "ExponentialMovingAverage",
    "GradientClipping",
    "InsertDropout",
    "L2Penalty",
    "SharpnessAwareMinimization",
    "StochasticWeightAverage",
}

SEE_SAMPLES_AGAIN = {"RDrop", "RegMixup", "AugmentationConsistency"}


def cells():
    techniques = [name for name in NAMES if not only_watches(name)]  # the others are seen in test_traceless.py
    for (row, name), (column, project) in product(enumerate(techniques), enumerate(PROJECTS)):
        is_quick = name in EVERYWHERE or (row + column) % 4 == 0
        yield pytest.param(name, project, id=f"{name}-{project}", marks=() if is_quick else pytest.mark.slow)


def test_every_callback_is_here():
    assert {name.split()[0] for name in NAMES} == set(PUBLIC)


@pytest.mark.parametrize("project", PROJECTS)
def test_alone_the_project_trains_the_same_weights_twice(project):
    plain, again = fitted_plainly(project), fit(PROJECTS[project])
    assert is_finite(plain.module)
    assert all(one.equal(other) for one, other in zip(plain.weights, again.weights, strict=True))


def acts(name, outcome, plain):
    """Whether something tells that it was there: it trains other weights, or says why it doesn't."""
    kind = getattr(callbacks, name.split()[0])
    if kind is callbacks.BestWeightsEarlyStopping:  # it has no reason to stop
        return any(
            isinstance(callback, kind) and callback.best_score.isfinite() for callback in outcome.trainer.callbacks
        )
    if outcome.said - plain.said:
        return True
    weights, others = outcome.weights, plain.weights
    return len(weights) != len(others) or any(not a.equal(b) for a, b in zip(weights, others, strict=True))


@pytest.mark.parametrize(("name", "project"), list(cells()))
def test_trains_or_refuses(name, project):
    plain = fitted_plainly(project)
    outcome = fit_or_refusal(PROJECTS[project], make(name, PROJECTS[project]))
    if isinstance(outcome, SettingError):
        assert "\n" not in str(outcome)
        assert may_refuse(name, project, str(outcome)), outcome
        return
    assert is_finite(outcome.module)
    assert acts(name, outcome, plain)
    found = differences(counts_of(plain.module), counts_of(outcome.module))
    if name.split()[0] in SEE_SAMPLES_AGAIN:
        found = [line for line in found if "samples_seen" not in line]
    assert not found
