"""Trials are done until the budget is used up; whatever ends one is a result, and whatever ends all loses nothing."""

import errno
import math
from pathlib import Path

import pytest

from lightning_reg.cli import main
from lightning_reg.search.trials.running import Budget, Goal, do_trials
from lightning_reg.search.trials.storage import Driver
from lightning_reg.settings import SettingError
from lightning_reg.studies.executor import InProcessExecutor, LocalExecutor
from lightning_reg.studies.runs import Measured
from lightning_reg.studies.store import Store
from tests.search.helpers import first_of, make_runs, make_space, make_trials, perform, quality
from tests.studies.processes import python

TABLE = """
space: {switches: {l1: {callback: L1Penalty}}}
metric: val/loss
base: {model: MLP, data: TabularData, data.dataset: iris, data.test_size: null}
"""
GOAL = Goal("val/accuracy", prefers_less=False, splits=1)


def go(folder, do=perform, count=8, *, goal=GOAL, executor=None, runs=None, only=(), **budget):
    driver = Driver(folder)
    with driver.alive(), executor or InProcessExecutor() as used:
        trials = make_trials(folder, driver=driver, prunes=goal.prunes)
        do_trials(
            trials,
            Store(folder, "example"),
            runs or make_runs(splits=goal.splits),
            do,
            used,
            goal,
            Budget(count, **budget),
            quiet=True,
            only=only,
        )
        return trials


def test_every_trial_is_measured_on_every_split(tmp_path):
    trials = go(tmp_path, goal=Goal("val/accuracy", prefers_less=False, splits=3))
    assert [trial.position for trial in trials.tried] == list(range(8))
    for trial in trials.tried:
        expected = [quality(trial.cocktail) + 0.001 * split for split in range(3)]
        assert trial.values == pytest.approx(expected)
        assert trial.value == pytest.approx(sum(expected) / 3)
        assert trial.step_seconds == 0.01


def test_a_search_that_is_finished_does_nothing_and_goes_on_with_more(tmp_path):
    done = []

    def count(run, folder):
        done.append(run.key)
        return perform(run, folder)

    go(tmp_path, count)
    go(tmp_path, count)
    assert len(done) == len(set(done)) <= 8  # what is the same isn't done again
    assert len(go(tmp_path, count, 10).tried) == 10


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate"), "RuntimeError: CUDA out of memory"),
        (SettingError("p must be in [0, 1), but is 1"), "p must be in [0, 1), but is 1"),
        (None, "diverged: val/accuracy is nan on split 0"),
    ],
)
def test_a_trial_that_fails_or_diverges_is_a_result(tmp_path, error, message):
    def fail_with_dropout(run, folder):
        if "dropout" in (run.arguments["cocktail"] or {}):
            if error is not None:
                raise error
            return Measured({"val/accuracy": math.nan})
        return perform(run, folder)

    tried = go(tmp_path, fail_with_dropout).tried
    assert len(tried) == 8
    for trial in tried:
        failed = "dropout" in (trial.cocktail or {})
        assert (trial.value is None) == failed
        assert trial.message.startswith(message) if failed else not trial.message


def test_a_plain_run_that_fails_ends_the_search(tmp_path):
    def fail(run, folder):
        raise ValueError("no data")

    with pytest.raises(SettingError, match="the base without any of the space's switches must train, but failed: Val"):
        go(tmp_path, fail)


def test_a_metric_that_is_not_measured_is_told_with_those_that_are(tmp_path):
    with pytest.raises(SettingError, match="metric must be one of val/accuracy, but is 'val/acuracy'; did you mean"):
        go(tmp_path, goal=Goal("val/acuracy", prefers_less=False, splits=1))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_whatever_ends_the_search_it_goes_on_the_same_way(tmp_path, kind):
    whole = go(tmp_path / "whole", count=12)
    ended = []

    def interrupted(run, folder):
        if len(ended) < 3 and run.key.startswith(("0", "1", "2", "3", "4", "5")) and run.key not in ended:
            ended.append(run.key)
            raise KeyboardInterrupt if kind is KeyboardInterrupt else OSError(errno.ENOSPC, "No space left on device")
        return perform(run, folder)

    for _ in range(3):
        expected = KeyboardInterrupt if kind is KeyboardInterrupt else SettingError
        with pytest.raises(expected, match=None if kind is KeyboardInterrupt else "is full; what is finished is kept"):
            go(tmp_path / "parts", interrupted, 12)
    parts = go(tmp_path / "parts", interrupted, 12)
    assert [trial.parameters for trial in parts.tried] == [trial.parameters for trial in whole.tried]
    assert [trial.value for trial in parts.tried] == [trial.value for trial in whole.tried]


def test_splits_that_are_done_are_kept_when_a_trial_is_begun_anew(tmp_path):
    done = []

    def interrupted(run, folder):
        done.append((run.variant, run.seed))
        if run.variant == "base" and run.seed == 2 and done.count(("base", 2)) == 1:
            raise KeyboardInterrupt
        return perform(run, folder)

    goal = Goal("val/accuracy", prefers_less=False, splits=3)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, interrupted, 3, goal=goal)
    go(tmp_path, interrupted, 3, goal=goal)
    assert [split for name, split in done if name == "base"] == [0, 1, 2, 2]


def test_steps_that_take_too_long_cannot_win(tmp_path):
    def slow_with_dropout(run, folder):
        measured = perform(run, folder)
        factor = 2.0 if "dropout" in (run.arguments["cocktail"] or {}) else 1.0
        return Measured({**measured.metrics, "seconds per step": 0.01 * factor})

    trials = go(tmp_path, slow_with_dropout, 25, step_times=1.5)
    assert any("dropout" in (trial.cocktail or {}) and trial.excess == pytest.approx(0.5) for trial in trials.tried)
    assert "dropout" not in (trials.best(trials.tried).cocktail or {})


def test_bad_trials_are_ended_by_their_first_splits_where_that_is_asked_for(tmp_path):
    goal = Goal("val/accuracy", prefers_less=False, splits=6, prunes=True)
    trials = go(tmp_path, goal=goal, count=20)
    pruned = [trial for trial in trials.tried if trial.message.startswith("pruned")]
    assert pruned
    assert all(4 <= len(trial.values) < 6 for trial in pruned)
    assert trials.best(trials.tried) not in pruned


def test_single_techniques_that_were_not_reached_are_completed(tmp_path):
    space = make_space()
    go(tmp_path, count=4)
    only = [first for first in first_of(space) if first.kind == "alone"]
    trials = go(tmp_path, count=4, only=only)
    assert {trial.name for trial in trials.tried if trial.kind == "alone"} == {"dropout alone", "decay alone"}
    assert trials.begun == 4
    assert len(go(tmp_path, count=4, only=only).tried) == len(trials.tried)


def test_no_trial_is_begun_when_the_time_is_up(tmp_path):
    assert len(go(tmp_path, count=8, minutes=1e-9).tried) == 0


@pytest.mark.slow
def test_trials_are_done_by_warm_workers(tmp_path):
    trials = go(tmp_path, count=8, executor=LocalExecutor(2))
    assert [trial.position for trial in trials.tried] == list(range(8))
    assert [trial.value for trial in trials.tried] == pytest.approx([quality(trial.cocktail) for trial in trials.tried])


KILLED = """
import os, pathlib
from tests.search import test_running
from tests.search.helpers import perform

def die_at_the_fifth(run, folder):
    if len(list(pathlib.Path(folder).parent.iterdir())) == 5:
        os.kill(os.getpid(), 9)
    return perform(run, folder)

test_running.go(pathlib.Path({folder!r}), die_at_the_fifth, 12)
"""


@pytest.mark.slow
def test_a_driver_that_is_killed_is_gone_on_from_the_same_way(tmp_path):
    whole = go(tmp_path / "whole", count=12)
    with python(KILLED.format(folder=str(tmp_path / "killed"))) as driver:
        assert driver.wait(120) == -9
    assert list((tmp_path / "killed" / "drivers").glob("*.lock"))
    parts = go(tmp_path / "killed", count=12)
    assert [trial.parameters for trial in parts.tried] == [trial.parameters for trial in whole.tried]
    assert [trial.position for trial in parts.tried] == list(range(12))
    assert not list((tmp_path / "killed" / "drivers").glob("*.lock"))


def test_folds_that_the_data_does_not_have_are_refused_before_the_first_trial(capsys):
    for folds, message in ((1000, "folds must be at most 150, the number of rows"), (10**9, "must be in [1, 10000]")):
        Path("search.yaml").write_text(f"{TABLE}folds: {folds}")
        assert main(["search", "search.yaml"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
