"""States in a checkpoint that nothing can be done with are answered before a fit goes on from it."""

import copy
import math

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, EarlyStopping, ModelCheckpoint, Timer

from lightning_reg import BestWeightsEarlyStopping
from lightning_reg.cli.resuming import check_callbacks, check_data
from lightning_reg.core.layout import check_declared, check_layout
from lightning_reg.data import ImageData
from lightning_reg.settings import SettingError
from tests.cli.helpers import run

HIGHEST = torch.tensor(1.0)
META = torch.ones((), device="meta")


def answered(callback, changes):
    """What a checkpoint is answered with whose callback's state has some entries changed; None if nothing."""
    saved = {"callbacks": {callback.state_key: {**callback.state_dict(), **changes}}}
    trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=isinstance(callback, ModelCheckpoint))
    try:
        check_callbacks("a.ckpt", saved, trainer)
    except SettingError as error:
        return str(error).removeprefix(f"ckpt_path 'a.ckpt' can't be restored: its callbacks.{callback.state_key}.")


SAVES = [
    ({"best_k_models": {1: HIGHEST}}, "best_k_models has the key 1, which is no str"),
    ({"best_k_models": {"a.ckpt": torch.ones(3)}}, "best_k_models.a.ckpt is a tensor of shape (3,), not a number"),
    ({"best_k_models": {"a.ckpt": None}}, "best_k_models.a.ckpt is a NoneType, not a number"),
    ({"best_k_models": {"a.ckpt": torch.tensor(math.nan)}}, "best_k_models.a.ckpt is nan"),
    ({"best_model_score": "high"}, "best_model_score is a str, not a number"),
    ({"best_model_score": torch.tensor(1j)}, "best_model_score is a complex, not a number"),
    ({"current_score": [HIGHEST]}, "current_score is a list, not a number"),
    ({"kth_value": META}, "kth_value is a tensor without values"),
    ({"best_model_path": None}, "best_model_path is a NoneType, not a str"),
    ({"dirpath": -1}, "dirpath is a int, not a str"),
    ({"best_k_models": {"a.ckpt": HIGHEST}, "best_model_score": HIGHEST, "dirpath": None}, None),
    ({"current_score": None, "kth_value": torch.tensor(2)}, None),
]


@pytest.mark.parametrize(("changes", "answer"), SAVES)
def test_state_of_what_saves_checkpoints(changes, answer):
    assert answered(ModelCheckpoint(monitor="val/loss"), changes) == answer


STOPS = [
    ({"best_score": torch.tensor(math.nan)}, "best_score is nan"),
    ({"best_score": torch.ones(2)}, "best_score is a tensor of shape (2,), not a number"),
    ({"wait_count": math.inf}, "wait_count is inf"),
    ({"stopping_reason_message": 3}, "stopping_reason_message is a int, not a str"),
    ({"stopping_reason_message": None, "best_score": torch.tensor(-math.inf)}, None),
]


@pytest.mark.parametrize("kind", [EarlyStopping, BestWeightsEarlyStopping])
@pytest.mark.parametrize(("changes", "answer"), STOPS)
def test_state_of_what_stops_early(kind, changes, answer):
    assert answered(kind(monitor="val/loss"), changes) == answer


def test_private_attributes_are_declared_too():
    state = {"internal_optimizer_metadata": {"a": []}}
    with pytest.raises(SettingError, match="metadata has the key 'a', which is no int"):
        check_declared("state", state, BackboneFinetuning)
    check_declared("state", {"internal_optimizer_metadata": {0: [{"lr": 0.1}]}}, BackboneFinetuning)


def test_times_may_be_fractions():
    assert answered(Timer("00:01:00:00"), {"time_elapsed": {"train": 0.5}}) is None


def test_numbers_in_lists_are_compared():
    with pytest.raises(SettingError, match=r"latest\.1 is a str, not a number"):
        check_layout("latest", (0, "a", 0.5), (-1, 0.0, 0.0))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The content of a checkpoint after two epochs."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("good")
        patch.chdir(folder)
        assert run("fit") == 0
        return torch.load(next(folder.rglob("last.ckpt")), weights_only=True)


def resumed(content, capsys):
    torch.save(content, "x.ckpt")
    capsys.readouterr()
    status = run("fit", "--ckpt_path", "x.ckpt", "--trainer.max_epochs", "3", "--trainer.logger", "false")
    return status, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(("fault", "told"), [(math.nan, "with NaNs"), (None, "without values")])
def test_moments_that_no_step_can_use(good, fault, told, capsys):
    content = copy.deepcopy(good)
    state = content["optimizer_states"][0]["state"][0]
    state["exp_avg"] = state["exp_avg"].to("meta") if fault is None else state["exp_avg"] * fault
    status, answer = resumed(content, capsys)
    assert status == 2
    assert f"'x.ckpt' holds an optimizer's state {told}: exp_avg of parameter 0" in answer


@pytest.mark.parametrize(
    ("state", "answer"),
    [(None, "ImageData is a NoneType, not a mapping"), ([], "ImageData is a list, not a mapping")],
)
def test_state_of_data_of_another_kind(good, state, answer, capsys):
    status, told = resumed({**good, "ImageData": state}, capsys)
    assert status == 2
    assert f"'x.ckpt' can't be restored: its {answer}" in told


def test_parts_of_the_state_of_data(good):
    data = ImageData(dataset="digits")
    data.prepare_data()
    data.setup("fit")
    check_data("x.ckpt", good, data)
    with pytest.raises(SettingError, match=r"its ImageData\.split is a list, not a mapping"):
        check_data("x.ckpt", {"ImageData": {**good["ImageData"], "split": []}}, data)


def test_classes_that_are_no_text_are_listed(good, capsys):
    content = copy.deepcopy(good)
    content["ImageData"]["classes"][0] = None
    assert "must have the checkpoint's classes, None, 1, 2" in resumed(content, capsys)[1]
