"""Content decides which run is which."""

from pathlib import Path

import pytest

from lightning_reg.settings import SettingError
from lightning_reg.shipped import shipped_configs
from lightning_reg.studies.definition import read_study
from lightning_reg.studies.runs import Run, check_distinct, computations, compute, self_contained


def halved(*, x, seed, power=1.0):
    return {"y": (x / 2) ** power + seed}


def halved_and_more(*, x, seed):
    return {"y": x / 2}, {"parts": {"seed": seed}}


@pytest.fixture
def study(tmp_path):
    def read(variants, function="tests.studies.test_runs.halved", arguments="{}"):
        path = tmp_path / "computation.yaml"
        path.write_text(f"function: {function}\narguments: {arguments}\nmetric: y\nseeds: 2\nvariants: {variants}\n")
        return read_study(path)

    return read


def test_a_computation_is_called_with_its_arguments_and_seed(study):
    runs = computations(study("{a: {x: 2}, b: {x: 6}}", arguments="{power: 2}"))
    assert [(run.variant, run.seed) for run in runs] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [compute(run).metrics["y"] for run in runs] == [1, 9, 2, 10]


def test_a_computation_may_return_more_than_numbers(study):
    run = computations(study("{a: {x: 2}}", function="tests.studies.test_runs.halved_and_more"))[1]
    assert compute(run).collected == {"parts": {"seed": 1}}


def test_keys_go_by_content_alone(study):
    one = [run.key for run in computations(study("{a: {x: 2}, b: {x: 3}}"))]
    renamed = [run.key for run in computations(study("{c: {x: 2}, d: {x: 4}}"))]
    assert len(set(one)) == 4
    assert [mine == other for mine, other in zip(one, renamed, strict=True)] == [True, False, True, False]
    assert set(one).isdisjoint(run.key for run in computations(study("{a: {x: 2}}", arguments="{power: 2}")))


def test_variants_that_are_the_same_are_refused(study):
    with pytest.raises(SettingError, match="variants 'a' and 'b' are the same"):
        computations(study("{a: {x: 2}, b: {x: 2}}"))
    with pytest.raises(SettingError, match=r"variants.b changes nothing: like 'a', it is the base as it is"):
        computations(study("{a: {}, b: {x: 2}}", arguments="{x: 2}"))
    check_distinct({"a": 1, "b": 2}, 3)


@pytest.mark.parametrize(
    "function", ["tests.studies.nowhere.halved", "tests.studies.test_runs.thirded", "tests.studies.test_runs"]
)
def test_a_function_that_is_none(study, function):
    with pytest.raises(SettingError, match="function must be the dotted name of a function, but "):
        computations(study("{a: {x: 2}}", function=function))


def test_a_base_in_a_study_of_a_computation(tmp_path):
    path = tmp_path / "computation.yaml"
    path.write_text("function: f\nbase: {}\nmetric: y\nseeds: 2\nvariants: {a: {}}\n")
    with pytest.raises(SettingError, match="base must be left out of a study of a function"):
        read_study(path)


def test_configurations_go_along_by_path_and_by_name():
    Path("own.yaml").write_text("seed_everything: 1\n")
    run = Run("a", 0, "key", command=("--config", "digits_mlp", "--config", "own.yaml", "--data.seed", "0"))
    texts = (shipped_configs()["digits_mlp"].read_text(), "seed_everything: 1\n")
    assert self_contained(run).command == ("--config", texts[0], "--config", texts[1], "--data.seed", "0")
