"""What a study file may say, and what is said where it can't be used."""

import json
import os
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from lightning_reg.files import read_yaml
from lightning_reg.settings import SettingError
from lightning_reg.studies.definition import Form, read_study
from lightning_reg.studies.study_file import AxisKeys, DataKeys, FormKeys, StudyKeys, dumped, keys_help

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
    "a seed that is none": (
        "seeds: [3, 5]",
        "seeds: [3, x]",
        r"seeds must be at least one whole number, .* but is \[3, 'x'\]",
    ),
    "a negative seed": ("seeds: [3, 5]", "seeds: [3, -5]", "seeds must be a whole number of at least 0, but is -5"),
    "a seed with a point": ("seeds: [3, 5]", "seeds: 3.5", "seeds must be at least one whole number, .* but is 3.5"),
    "too many seeds": ("seeds: [3, 5]", "seeds: 100000000000", r"seeds must be in \[1, 10000\], but is 100000000000"),
    "too many seeds of a form": ("quick: {seeds: 1", "quick: {seeds: 100001", r"quick.seeds must be in \[1, 10000\]"),
    "repeat that is neither": ("minutes: 6", "repeat: 1", "repeat must be true or false, but is 1"),
    "seeds of a form": ("quick: {seeds: 1", "quick: {seeds: 0", "quick.seeds must be a whole number of at least 1"),
    "a form that is none": (
        "minutes: 6",
        "data: {mnist: short}",
        "data.mnist must be settings by name, but is 'short'",
    ),
    "a title that YAML reads otherwise": ("title: Example", "title: 2026", "title must be text, but is 2026"),
    "a metric that is a list": ("minutes: 6", "metric: [test/loss]", r"metric must be text, but is \['test/loss'\]"),
    "better that is neither": (
        "minutes: 6",
        "better: loewr",
        "better must be one of lower, higher, but is 'loewr'; did",
    ),
    "logarithmic that is neither": (
        "minutes: 6",
        "axis: {values: [1, 2, 3], logarithmic: 3}",
        "axis.logarithmic must be true or false, but is 3",
    ),
    "an axis that is a list": ("minutes: 6", "axis: [1, 2, 3]", "axis must be label, values and logarithmic by name"),
    "a base that doesn't exist": (
        "base: base.yaml",
        "base: bose.yaml",
        "base must name a configuration that exists, but",
    ),
    "an overlay that doesn't exist": ("[overlay", "[over", r"variants.both must name .* 'over.yaml' doesn't"),
    "a variant twice": ("both:", "none:", "must have every key once, but line 10 has 'none' again"),
    "a name that YAML reads otherwise": ("none:", "off:", "YAML reads a name as False; put it into quotation marks"),
    "a variant without a name": ("none:", "' ':", "variants must have names, but one is blank"),
    "a baseline that isn't there": (
        "minutes: 6",
        "baseline: non",
        "baseline must be .*, but is 'non'; did you mean 'none'",
    ),
    "an unknown collector": ("minutes: 6", "collect: [weigths]", "but is 'weigths'; did you mean 'weights'"),
    "collect as text": ("minutes: 6", "collect: weights", "collect must be a list of weights, "),
    "an axis of another length": ("minutes: 6", "axis: {values: [1, 2]}", "for each of the 3 variants, but has 2"),
    "an axis without values": ("minutes: 6", "axis: {label: x}", "axis.values is missing"),
    "an axis of text": (
        "minutes: 6",
        "axis: {values: [1, 2, x]}",
        "axis.values must be a list of numbers, but is .*'x'",
    ),
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
    "no YAML": ("title: Example", "title: {", r"isn't (plain )?YAML"),
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
    with pytest.raises(SettingError, match="study file must be a file that exists, but is"):
        read_study(tmp_path / "nothing.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(SettingError, match=r"list.yaml': the file must be settings by name, but is \[1, 2\]"):
        read_study(tmp_path / "list.yaml")


def test_settings_are_kept_as_they_are_written(write):
    """What looks like a class, a number or a list in a text is none to whoever reads the file."""
    written = {
        "class_path": "os.system",
        "init_args": {"command": "touch here"},
        "more": ["1e-3", "[1, 2]", {"x": "null"}],
    }
    content = GOOD.replace("none: {}", f"none: {{trainer.callbacks: [{json.dumps(written)}]}}")
    assert read_study(write(content)).variants["none"] == ({"trainer.callbacks": [written]},)


TAGGED = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [executed]]"
A_CLASS = "{class_path: os.system, init_args: {command: touch executed}}"
SMALL = {"title": "Small", "base": "base.yaml", "variants": "{a: {}}", "seeds": "1"}


def with_payload(write, key, payload):
    return write("\n".join(f"{name}: {value}" for name, value in {**SMALL, key: payload}.items()))


@pytest.mark.parametrize("payload", [TAGGED, f"{{x: {TAGGED}}}", f"[{TAGGED}]", A_CLASS, f"[{A_CLASS}]"])
@pytest.mark.parametrize("key", ["title", "seeds", "variants", "axis", "quick", "data", "collect", "anything"])
def test_a_stranger_s_file_executes_nothing(write, key, payload):
    with pytest.raises(SettingError) as error:
        read_study(with_payload(write, key, payload))
    assert "\n" not in str(error.value)
    assert not Path("executed").exists()


@pytest.mark.parametrize(("key", "payload"), [("base", A_CLASS), ("variants", f"{{a: {A_CLASS}}}")])
def test_settings_of_a_stranger_s_runs_execute_nothing_when_they_are_read(write, key, payload):
    read_study(with_payload(write, key, payload))
    assert not Path("executed").exists()


@pytest.mark.timeout(20)
def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(SettingError, match=r"study file must be a regular file, but .* is a named pipe"):
        read_study(tmp_path / "pipe.yaml")
    with pytest.raises(SettingError, match=r"study file must be a regular file, but .* is a folder"):
        read_study(tmp_path)


def test_the_help_names_every_key():
    text = keys_help()
    for kind in (StudyKeys, FormKeys, DataKeys, AxisKeys):
        for key in fields(kind):
            assert re.search(rf"^  {key.name}\b", text, re.MULTILINE)
    assert "<class" not in text


def test_what_is_left_out_can_be_printed(write):
    path = write(GOOD)
    printed = path.with_name("printed.yaml")
    printed.write_text(dumped(read_yaml("study file", path)))
    assert "collect: []" in printed.read_text()
    again = read_study(printed)
    assert replace(again.study, name="example") == read_study(path).study
    assert again.variants == read_study(path).variants
