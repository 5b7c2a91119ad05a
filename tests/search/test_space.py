"""What can be tried: read, proposed, realized; never two of a group, never a conflict."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from torch import nn

from lightning_reg import callbacks
from lightning_reg.search.definition import narrowed
from lightning_reg.search.prospects import with_present
from lightning_reg.search.spaces.ranges import Interval, Options, as_range
from lightning_reg.search.spaces.space_file import SHIPPED, read_space, space_of
from lightning_reg.settings import SettingError
from tests.search.helpers import SPACE, make_space
from tests.search.test_python import Net


class AtRandom:
    """Proposes anything."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.asked = {}

    def keep(self, name, value):
        assert name not in self.asked
        self.asked[name] = value
        return value

    def suggest_float(self, name, low, high, *, log=False):
        return self.keep(name, self.random.uniform(low, high))

    def suggest_int(self, name, low, high):
        return self.keep(name, self.random.randint(low, high))

    def suggest_categorical(self, name, choices):
        return self.keep(name, self.random.choice(choices))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_space_proposes_what_it_can_realize_and_what_gives_the_same_parameters_back(name):
    space = read_space(name)
    seen = set()
    for seed in range(200):
        trial = AtRandom(seed)
        cocktail = space.suggest(trial)
        seen |= set(cocktail)
        assert space.parameters(cocktail) == trial.asked
        assert space.check(cocktail, "it") == cocktail
        for group in space.groups.values():
            assert len(set(group) & set(cocktail)) <= 1
        for switch, values in cocktail.items():
            settings, added = space.switches[switch].realized(values)
            assert settings or added
            assert not any(isinstance(value, (Interval, Options)) for value in settings.values())
    assert seen == set(space.switches)


@pytest.mark.parametrize("name", SHIPPED)
def test_callbacks_of_a_shipped_space_can_be_made_at_their_usual_strengths(name):
    space = read_space(name)
    for switch in space.switches.values():
        _, added = switch.realized(switch.usual())
        for entry in added:
            arguments = entry["init_args"]
            if not any(isinstance(value, dict) for value in arguments.values()):
                kind = getattr(callbacks, entry["class_path"].rpartition(".")[2])
                assert kind(**arguments)


def test_layers_are_named_that_the_module_has():
    module = Net()  # with ReLU
    space, notes = with_present(read_space("attach"), module)
    assert space.switches["dropout"].callbacks[0]["init_args"]["types"] == ["ReLU"]
    assert notes == []
    module.layers[1] = nn.Identity()
    space, notes = with_present(read_space("attach"), module)
    assert not {"dropout", "manifold_mixup"} & set(space.switches)
    reason = "is left out: the module has no layer of ReLU, LeakyReLU, ELU, GELU, SiLU, Tanh"
    assert notes == [f"dropout {reason}", f"manifold_mixup {reason}"]


def test_a_callback_has_the_ranges_that_it_declares():
    (strength,) = make_space().switches["l1"].strengths
    assert strength.name == "weight"
    assert strength.range == Interval("log", 1e-6, 1e-3, 3.16e-05)


def test_a_conflict_is_never_proposed():
    space = replace(make_space(), conflicts=frozenset({frozenset({"dropout", "l1"}), frozenset({"decay", "mixup"})}))
    together = set()
    for seed in range(300):
        cocktail = space.suggest(AtRandom(seed))
        assert not {"dropout", "l1"} <= set(cocktail)
        assert not {"decay", "mixup"} <= set(cocktail)
        assert space.suggest(AtRandom(seed)) == cocktail
        assert space.parameters(cocktail)
        together |= {
            frozenset(pair) for pair in [("dropout", "mixup"), ("decay", "cutmix")] if set(pair) <= {*cocktail}
        }
    assert len(together) == 2
    with pytest.raises(SettingError, match="must not have both 'dropout' and 'l1'"):
        space.check({"dropout": {}, "l1": {}}, "presets.both")


def test_a_choice_may_hold_ranges_that_are_asked_only_where_it_is_chosen():
    kinds = {"norm": {"class_path": "A", "init_args": {"clip": {"log": [0.1, 1.0]}}}, "none": None}
    space = space_of("x", {"switches": {"s": {"set": {"model.clip": {"choice": kinds}}}}})
    switch = space.switches["s"]
    assert [strength.name for strength in switch.strengths] == ["clip", "norm.clip"]
    assert switch.completed({"clip": "none"}) == {"clip": "none"}
    assert switch.realized({"clip": "none"}) == ({"model.clip": None}, [])
    values = switch.completed({"norm.clip": 0.5})
    assert values == {"clip": "norm", "norm.clip": 0.5}
    assert switch.realized(values)[0] == {"model.clip": {"class_path": "A", "init_args": {"clip": 0.5}}}


def test_usual_strengths_are_the_file_s_or_the_middle():
    assert as_range("x", {"log": [1e-4, 1e-2]}).usual == 1e-3
    assert as_range("x", {"integer": [5, 10]}).usual == 7
    assert as_range("x", {"linear": [0, 1], "usual": 0.1}).usual == 0.1
    assert as_range("x", {"choice": ["b", "a"]}).usual == "b"


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        ({"set": {"a.b": {"log": [1e-2, 1e-4]}}}, "switches.s.set.a.b.log must be the lower bound and the higher one"),
        ({"set": {"a.b": {"log": [0, 1]}}}, r"switches.s.set.a.b.log must be in \(0, ∞\), but is 0"),
        ({"set": {"a.b": {"integer": [0.5, 2]}}}, "must be two whole numbers"),
        ({"set": {"a.b": {"linear": [0, 1], "usual": 2}}}, r"a.b.usual must be in \[0, 1\], but is 2"),
        ({"set": {"a.b": {"linear": [0, 1], "usal": 2}}}, "has 'usal'; did you mean 'usual'"),
        ({"set": {"a.b": {"linear": [0, 1], "log": [1, 2]}}}, "must have one of log, linear, integer and choice"),
        ({"set": {"a.b": {"choice": ["a"]}}}, "must have at least two options"),
        ({"callback": "L1Penaltyy"}, "is 'L1Penaltyy'; did you mean 'L1Penalty'"),
        ({"callbak": "L1Penalty"}, "has 'callbak', which is none of .*; did you mean 'callback"),
        ({"without": {"a": 1}}, "must set something, or add a callback"),
        ({"set": {"a.b": {"choice": [1, 2], "usual": [3]}}}, r"a.b.usual must be one of 1, 2, but is \[3\]"),
        ({"callback": "L1Penalty", "group": ["a"]}, r"switches.s.group must be text, but is \['a'\]"),
        ({"callback": "L1Penalty", "title": ["a"]}, r"switches.s.title must be text, but is \['a'\]"),
        ({"callback": "L1Penalty", "optional": "no"}, "switches.s.optional must be true or false, but is 'no'"),
        ({"callbacks": ["L1Penalty", "L1Penalty"]}, "switches.s must add a callback once, but has two equal ones"),
    ],
)
def test_a_space_that_cannot_be_is_told_in_one_sentence(switch, message):
    with pytest.raises(SettingError, match=message):
        space_of("x", {"switches": {"s": switch}})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"title": ["x"]}, r"title must be text, but is \['x'\]"),
        ({"switches": {"": {"callback": "L1Penalty"}}}, "switches must have names without points and spaces, but one"),
        ({"presets": 5}, "presets must be presets by name, but is 5"),
        ({"presets": {"p": {"l1": 5}}}, "presets.p.l1 must be strengths by name, but is 5"),
        ({"presets": {"p": {}}}, "presets.p must have at least one switch, but is empty"),
    ],
)
def test_the_rest_of_a_space_is_told_in_one_sentence_too(changed, message):
    with pytest.raises(SettingError, match=message):
        space_of("x", {**SPACE, **changed})


def test_callbacks_of_one_class_may_differ_and_a_preset_may_leave_out_its_strengths():
    penalties = [{"class_path": "L1Penalty", "init_args": {"include": [part]}} for part in ("a", "b")]
    left_out = dict.fromkeys(("title", "group", "optional"))
    space = space_of("x", {"switches": {"s": {"callbacks": penalties, **left_out}}, "presets": {"p": {"s": None}}})
    assert (space.switches["s"].title, space.switches["s"].group, space.switches["s"].is_optional) == ("s", None, False)
    assert space.presets["p"] == {"s": space.switches["s"].usual()}


def test_a_switch_that_is_named_twice_is_refused():
    with pytest.raises(SettingError, match="only must name every switch once, but names 'l1' several times"):
        narrowed(make_space(), only=["l1", "l1"])


def test_other_spaces_that_cannot_be():
    with pytest.raises(SettingError, match="must have at least one switch, but is empty"):
        space_of("x", {"switches": {}})
    with pytest.raises(
        SettingError, match=r"presets.p must have switches of the space, but has 'droput'; did you mean"
    ):
        space_of("x", {**SPACE, "presets": {"p": {"droput": {}}}})
    with pytest.raises(SettingError, match=r"dropout.drop_prob must be in \[0.0, 0.8\], but is 0.9"):
        space_of("x", {**SPACE, "presets": {"p": {"dropout": {"drop_prob": 0.9}}}})
    with pytest.raises(
        SettingError, match=r"space must be one of .*, or a file, but is 'tabula'; did you mean 'tabular'"
    ):
        read_space("tabula")


def test_a_space_is_read_from_a_file_beside_the_search(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(SPACE, sort_keys=False))
    assert list(read_space("mine.yaml", tmp_path).switches) == list(SPACE["switches"])
    (tmp_path / "mine.yaml").write_text("switches: 3")
    with pytest.raises(SettingError, match=r"space '.*mine.yaml': switches must be switches by name, but is 3"):
        read_space("mine.yaml", Path(tmp_path))
