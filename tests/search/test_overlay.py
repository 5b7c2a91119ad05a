"""What a cocktail makes of a base."""

from copy import deepcopy

import pytest

from lightning_reg.search.overlay import (
    absent_settings,
    differences,
    names_of,
    put,
    replaced_callbacks,
    value_of,
    with_cocktail,
)
from lightning_reg.search.spaces.space_file import space_of
from lightning_reg.settings import SettingError
from tests.search.helpers import BASE, make_space

OWN = {"class_path": "lightning_reg.callbacks.L1Penalty", "init_args": {"weight": 0.5}}
STOPPING = {"class_path": "lightning_reg.callbacks.BestWeightsEarlyStopping", "init_args": {"monitor": "val/loss"}}


def test_settings_are_found_by_their_names_on_the_command_line():
    settings = {"model": {"class_path": "MLP", "init_args": {"optimizer": {"class_path": "A", "init_args": {"lr": 1}}}}}
    assert list(names_of(settings)) == ["model", "model.optimizer", "model.optimizer.lr"]
    put(settings, "model.optimizer.lr", 2)
    assert settings["model"]["init_args"]["optimizer"]["init_args"] == {"lr": 2}
    assert value_of(settings, "model.optimizer.lr") == 2
    with pytest.raises(SettingError, match=r"has no setting 'model.optimizer.rl'; did you mean 'model.optimizer.lr'"):
        put(settings, "model.optimizer.rl", 2)


def test_what_isn_t_on_is_off_and_the_base_stays():
    base = deepcopy(BASE)
    made = with_cocktail(make_space(), base, {"decay": {"weight_decay": 0.1}})
    assert value_of(made, "model.drop_prob") == 0.0
    assert value_of(made, "model.weight_decay") == 0.1
    assert base == BASE
    assert differences(make_space(), base, made) == {"model.drop_prob": 0.0, "model.weight_decay": 0.1}
    assert differences(make_space(), base, base) == {}


def test_a_switch_of_another_space_is_named():
    with pytest.raises(SettingError, match="must have switches of its space, but has 'zoom'"):
        with_cocktail(make_space(), BASE, {"zoom": {}})


def test_of_callbacks_that_a_switch_adds_the_switch_decides():
    base = {**BASE, "trainer": {"callbacks": [OWN, STOPPING]}}
    space = make_space()
    assert replaced_callbacks(space, base) == {"l1": ["L1Penalty"]}
    assert with_cocktail(space, base, {})["trainer"]["callbacks"] == [STOPPING]
    made = with_cocktail(space, base, {"l1": {"weight": 1e-4}})
    assert made["trainer"]["callbacks"] == [STOPPING, {**OWN, "init_args": {"weight": 1e-4}}]
    assert differences(space, base, made)["trainer.callbacks"] == made["trainer"]["callbacks"]


def test_a_base_without_a_setting_is_told():
    space = space_of("x", {"switches": {"s": {"set": {"model.hed_drop": 1}, "without": {"model.drop_prob": 0}}}})
    assert absent_settings(space.switches["s"], BASE) == ["model.hed_drop"]
