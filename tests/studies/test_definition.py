"""What a study file may say, and what is said where it can't be used."""

import re

import pytest

from lightning_reg.settings import SettingError
from lightning_reg.studies.definition import Form, read_study

GOOD = """
title: Example
question: >
  Does it
  work?
base: base.yaml
variants:
  none: {}
  0.3: {model.drop_prob: 0.3, trainer.callbacks+: {class_path: L2Penalty, init_args: {weight: 1e-4}}}
  both: [overlay.yaml, {trainer.max_epochs: 2}]
seeds: [3, 5]
minutes: 6
quick: {seeds: 1, base: {trainer.max_epochs: 1}, minutes: 1}
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "base.yaml").touch()
    (tmp_path / "overlay.yaml").touch()

    def text(content):
        path = tmp_path / "example.yaml"
        path.write_text(content)
        return path

    return text


def test_a_file_is_read(write, tmp_path):
    definition = read_study(write(GOOD))
    study = definition.study
    assert (study.name, study.title, study.question) == ("example", "Example", "Does it work?")
    assert (study.variants, study.baseline, study.seeds) == (("none", "0.3", "both"), "none", (3, 5))
    assert study.metric == "test/accuracy"
    assert [path.name for path in definition.base] == ["base.yaml"]
    assert definition.variants["none"] == ()
    # As on a command line, where no point is needed.
    assert definition.variants["0.3"][0]["trainer.callbacks+"]["init_args"]["weight"] == 1e-4
    assert definition.variants["both"][1] == {"trainer.max_epochs": 2}


def test_forms_change_seeds_base_and_cost(write):
    definition = read_study(write(GOOD))
    quick = definition.in_form(definition.quick)
    assert (quick.study.seeds, quick.base[1:], quick.minutes) == ((0,), ({"trainer.max_epochs": 1},), 1)
    assert definition.in_form(Form()).minutes is None
    assert definition.with_seeds(4).study.seeds == (0, 1, 2, 3)
    assert definition.with_seeds(4).minutes == 12


def test_only_some_variants_keep_their_order_and_values(write):
    definition = read_study(write(GOOD + "axis: {label: rate, values: [0, 0.3, 0.5]}"))
    some = definition.only(["both", "0.3"])
    assert (some.study.variants, some.study.baseline, some.study.axis.values) == (("0.3", "both"), "0.3", (0.3, 0.5))
    assert some.minutes == 4
    with pytest.raises(SettingError, match=r"only must be one of none, 0\.3, both, but is 'bot'; did you mean 'both'"):
        definition.only(["bot"])


def test_paths_are_those_of_the_current_folder_first(write, tmp_path, monkeypatch):
    path = write(GOOD)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert read_study(path).base == (tmp_path / "base.yaml",)
    (here / "base.yaml").touch()
    assert str(read_study(path).base[0]) == "base.yaml"


BAD = {
    "unknown key": ("variants:", "variant:", "'variant', which is none of .*; did you mean 'variants'"),
    "unknown key of a form": ("quick: {seeds", "quick: {seds", "quick has 'seds', .*; did you mean 'seeds'"),
    "unknown key of a form on other data": (
        "minutes: 6",
        "data: {mnist: {quick: {variants: {}}}}",
        "data.mnist.quick has 'variants', which is none of",
    ),
    "no seeds": ("seeds: [3, 5]", "seeds: []", "seeds must be at least one whole number"),
    "seeds left out": ("seeds: [3, 5]\n", "", "seeds is missing"),
    "zero seeds": ("seeds: [3, 5]", "seeds: 0", "seeds must be a whole number of at least 1, but is 0"),
    "a seed twice": ("seeds: [3, 5]", "seeds: [3, 3]", "seeds must differ from one another"),
    "a seed that is none": ("seeds: [3, 5]", "seeds: [3, x]", "seeds must be a whole number of at least 0, but is 'x'"),
    "a base that doesn't exist": (
        "base: base.yaml",
        "base: bose.yaml",
        "base must name a configuration that exists, but",
    ),
    "an overlay that doesn't exist": ("[overlay", "[over", r"variants.both must name .* 'over.yaml' doesn't"),
    "a variant twice": ("both:", "none:", "line 10: 'none' is there twice"),
    "a name that YAML reads otherwise": ("none:", "off:", "YAML reads a name as False; put it into quotation marks"),
    "a baseline that isn't there": (
        "minutes: 6",
        "baseline: non",
        "baseline must be .*, but is 'non'; did you mean 'none'",
    ),
    "an unknown collector": ("minutes: 6", "collect: [weigths]", "but is 'weigths'; did you mean 'weights'"),
    "collect as text": ("minutes: 6", "collect: weights", "collect must be a list of weights, "),
    "an axis of another length": ("minutes: 6", "axis: {values: [1, 2]}", "for each of the 3 variants, but has 2"),
    "an axis without values": ("minutes: 6", "axis: {label: x}", "for each of the 3 variants, but has none"),
    "an axis of text": ("minutes: 6", "axis: {values: [1, 2, x]}", "axis.values must be a number, but is 'x'"),
    "factors of zero": ("minutes: 6", "axis: {values: [0, 1, 2], logarithmic: true}", r"axis.values must be in \(0"),
    "an unknown key of the axis": (
        "minutes: 6",
        "axis: {value: [1, 2, 3]}",
        "axis has 'value', .* did you mean 'values'",
    ),
    "a metric of no split": (
        "minutes: 6",
        "metric: accuracy",
        "metric must be train/, validation/ or test/ and a name",
    ),
    "minutes that are none": ("minutes: 6", "minutes: soon", "minutes must be a number, but is 'soon'"),
    "arguments without a function": ("minutes: 6", "arguments: {}", "arguments must be left out of a study without a"),
    "settings that are none": ("none: {}", "none: 5", "variants.none must be a configuration's path, or settings"),
    "no YAML": ("title: Example", "title: {", "is no YAML"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said(write, case):
    old, new, message = BAD[case]
    assert old in GOOD
    with pytest.raises(SettingError, match=r"study file .*example.yaml'") as error:
        read_study(write(GOOD.replace(old, new)))
    assert re.search(message, str(error.value))


def test_no_variants(write):
    with pytest.raises(SettingError, match=r"variants must have at least one, by name, but is \{\}"):
        read_study(write("base: base.yaml\nvariants: {}\nseeds: 1\n"))


def test_near_configurations_are_named(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=r"did you mean .base\.yaml."):
        read_study(write(GOOD.replace("base: base.yaml", "base: bose.yaml")))


def test_a_file_that_is_not_there_or_holds_no_settings(tmp_path):
    with pytest.raises(SettingError, match="can't be read"):
        read_study(tmp_path / "nothing.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(SettingError, match="must hold settings by name"):
        read_study(tmp_path / "list.yaml")
