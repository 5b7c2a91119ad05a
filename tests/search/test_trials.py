"""Proposals go one way, whatever interrupts them."""

import pytest

from lightning_reg.search.spaces.space_file import space_of
from lightning_reg.search.trials.storage import Driver, silenced
from lightning_reg.settings import SettingError
from tests.search.helpers import make_trials, quality


def ask_and_tell(trials, count, *, stop_at=()):
    """Does trials until there are so many; leaves the first of some positions behind, as a kill would."""
    with silenced():
        trials.adopt_orphans()
        while trials.begun < count:
            proposal = trials.ask()
            if proposal.position in stop_at:
                return proposal.position
            trials.tell(proposal, [quality(proposal.cocktail)], seconds=1.0)
    return None


def test_a_search_goes_the_same_way_interrupted_or_not(tmp_path):
    whole = make_trials(tmp_path / "whole")
    ask_and_tell(whole, 30)
    stops = {0, 3, 5, 12, 13, 25, 29}
    while True:
        driver = Driver(tmp_path / "parts")
        with driver.alive():
            parts = make_trials(tmp_path / "parts", driver=driver)
            stopped = ask_and_tell(parts, 30, stop_at=stops)
        if stopped is None:
            break
        stops.remove(stopped)
    assert not stops
    assert [trial.parameters for trial in parts.tried] == [trial.parameters for trial in whole.tried]
    assert [trial.position for trial in parts.tried] == list(range(30))
    assert [trial.name for trial in parts.tried] == [trial.name for trial in whole.tried]


def test_another_seed_goes_another_way(tmp_path):
    found = []
    for seed in (0, 0, 1):
        trials = make_trials(tmp_path / str(len(found)), seed=seed)
        ask_and_tell(trials, 15)
        found.append([trial.parameters for trial in trials.tried])
    assert found[0] == found[1] != found[2]


def test_the_first_trials_are_plain_base_presets_and_single_techniques(tmp_path):
    trials = make_trials(tmp_path)
    ask_and_tell(trials, 8)
    kinds = [(trial.kind, trial.cocktail) for trial in trials.tried]
    assert kinds[:3] == [
        ("plain", {}),
        ("base", None),
        ("preset", {"dropout": {"drop_prob": 0.1}, "decay": {"weight_decay": 0.001}}),
    ]
    assert [kind for kind, _ in kinds[3:]] == ["alone", "alone", "search", "search", "search"]
    assert kinds[3][1] == {"dropout": {"drop_prob": 0.4}}


def test_the_search_finds_what_is_good(tmp_path):
    trials = make_trials(tmp_path)
    ask_and_tell(trials, 45)
    best = trials.best(trials.tried)
    assert best.value > 0.675  # 0.67 is the best that one technique can reach, 0.69 that all can
    assert set(best.cocktail) == {"dropout", "decay"}
    assert max(trials.importances(), key=trials.importances().get).startswith(("dropout", "decay", "noise", "l1"))


def switches_without_strengths(count):
    return space_of("plain", {"switches": {f"s{index}": {"set": {f"model.s{index}": True}} for index in range(count)}})


def proposed(trials, count):
    """Returns the switches of each proposal of a search that would best leave all but the first off."""
    found = []
    with silenced():
        while trials.begun < count:
            proposal = trials.ask()
            found.append(tuple(proposal.cocktail))
            trials.tell(proposal, [("s0" in proposal.cocktail) - 0.2 * len(proposal.cocktail)], seconds=1.0)
    return found


def test_no_cocktail_is_proposed_twice(tmp_path):
    found = proposed(make_trials(tmp_path, switches_without_strengths(7), first=[]), 50)
    assert len(set(found)) == 50
    assert ("s0",) in found


def test_random_proposals_repeat_none_either(tmp_path):
    found = proposed(make_trials(tmp_path, switches_without_strengths(3), first=[]), 6)
    assert len(set(found)) == 6


def test_a_space_with_fewer_cocktails_than_trials_repeats_them(tmp_path):
    found = proposed(make_trials(tmp_path, switches_without_strengths(2), first=[]), 20)
    assert set(found) == {(), ("s0",), ("s1",), ("s0", "s1")}


def test_a_trial_that_fails_is_worse_than_all(tmp_path):
    trials = make_trials(tmp_path)
    with silenced():
        first = trials.ask()
        trials.tell(first, [], seconds=1.0, message="out of memory")
        second = trials.ask()
        trials.tell(second, [0.1], seconds=1.0)
    assert [(trial.value, trial.message) for trial in trials.tried] == [(None, "out of memory"), (0.1, "")]
    assert trials.best(trials.tried).name == "base"
    assert trials.begun == 2


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("position", "x", "ValueError: invalid literal"),
        ("cocktail", "l1", "ValueError: dictionary update sequence"),
        ("values", [None], "TypeError: float"),
        ("step_seconds", "fast", "ValueError: could not convert"),
    ],
)
def test_a_trial_that_somebody_changed_is_told_in_one_sentence(tmp_path, name, value, reason):
    trials = make_trials(tmp_path)
    with silenced():
        proposal = trials.ask()
        trials.tell(proposal, [0.1], seconds=1.0)
        proposal.trial.study.get_trials(deepcopy=False)[0].user_attrs[name] = value
    with pytest.raises(SettingError, match=rf"trial 0 of the search's storage can't be read: {reason}.*--output$"):
        trials.tried  # noqa: B018  # a property that raises


def test_trials_of_a_living_driver_are_left_alone(tmp_path):
    one, other = Driver(tmp_path), Driver(tmp_path)
    with one.alive(), other.alive():
        trials, others = make_trials(tmp_path, driver=one), make_trials(tmp_path, driver=other)
        with silenced():
            mine = trials.ask()
            assert others.adopt_orphans() == 0
            theirs = others.ask()
            assert (mine.name, theirs.name) == ("plain", "base")
    with silenced():
        third = make_trials(tmp_path, driver=Driver(tmp_path))
        assert third.adopt_orphans() == 2
        again = [third.ask(), third.ask()]
    assert [trial.position for trial in again] == [0, 1]
    assert [trial.name for trial in again] == ["plain", "base"]


def test_a_first_trial_that_two_drivers_begin_is_done_by_one(tmp_path, monkeypatch):
    one, other = Driver(tmp_path), Driver(tmp_path)
    with one.alive(), other.alive(), silenced():
        trials, others = make_trials(tmp_path, driver=one), make_trials(tmp_path, driver=other)
        # Both see that nothing has begun, and enqueue the same.
        trials.enqueue(trials._first[0])
        others._study.enqueue_trial(dict.fromkeys((), False), user_attrs={"first": "plain", "kind": "plain"})
        names = [trials.ask().name, others.ask().name, trials.ask().name]
    assert names == ["plain", "base", "two"]
    assert trials.begun == 3


def test_extra_trials_are_none_of_the_budget_s(tmp_path):
    trials = make_trials(tmp_path)
    with silenced():
        assert trials.enqueue(trials._first[4], is_extra=True)
        assert trials.enqueue(trials._first[4], is_extra=True)  # it waits
        assert trials.begun == 0
        proposal = trials.ask()
        assert proposal.name == "decay alone"
        trials.tell(proposal, [0.5], seconds=1.0)
        assert not trials.enqueue(trials._first[4], is_extra=True)
    assert trials.begun == 0


def test_a_step_that_takes_too_long_can_t_win(tmp_path):
    trials = make_trials(tmp_path)
    with silenced():
        for excess, value in ((-0.5, 0.5), (0.2, 0.9)):
            trials.tell(trials.ask(), [value], seconds=1.0, step_seconds=0.1, excess=excess)
    assert trials.best(trials.tried).value == pytest.approx(0.5)


def test_a_step_that_takes_too_long_can_t_win_where_the_plain_run_ended_later(tmp_path):
    """With several jobs or drivers: what a step may take wasn't known when the trial ended."""
    trials = make_trials(tmp_path)
    with silenced():
        plain, base = trials.ask(), trials.ask()
        trials.tell(base, [0.9], seconds=1.0, step_seconds=0.1)
        trials.tell(plain, [0.5], seconds=1.0, step_seconds=0.01)
    assert trials.best(trials.tried).name == "base"
    assert trials.best(trials.tried, step_times=1.5).name == "plain"
