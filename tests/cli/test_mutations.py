"""Configurations and checkpoints that are changed at random are used, or answered by one sentence."""

import contextlib
import copy
import io
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from lightning.pytorch import LightningModule

from lightning_reg.cli.runs import read_for
from lightning_reg.cli.unattended.fitting import resolve
from lightning_reg.settings import SettingError
from tests.cli.helpers import MLP_CONFIG, run

ODD = some.sampled_from(
    [None, -1, 0, 1.5, 10**30, "", "abc", "L2Penalty", "os.system", [], [None], {}, {"class_path": None}, [[1]], True]
) | some.text(max_size=5)
SMALL = settings(
    max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def places(value, path=()):
    """Every place in nested mappings and lists."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(entry, (*path, key))


def put(content, path, value):
    for key in path[:-1]:
        content = content[key]
    content[path[-1]] = value


def assert_a_sentence(error):
    assert str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 700


@SMALL
@given(some.data())
def test_configuration_is_used_or_answered(data):
    content = yaml.safe_load(Path(MLP_CONFIG).read_text())
    put(content, data.draw(some.sampled_from(list(places(content)))), data.draw(ODD))
    Path("changed.yaml").write_text(yaml.safe_dump(content))
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            resolve(["--config", "changed.yaml"])
        except SettingError as error:
            assert_a_sentence(error)


@SMALL
@given(some.binary(min_size=1, max_size=4), some.floats(0, 1), some.booleans())
def test_text_with_other_bytes_is_used_or_answered(new, at, cuts):
    content = Path(MLP_CONFIG).read_bytes()
    place = int(at * len(content))
    Path("changed.yaml").write_bytes(content[:place] + new + (b"" if cuts else content[place + len(new) :]))
    try:
        resolve(["--config", "changed.yaml"])
    except SettingError as error:
        assert_a_sentence(error)


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


def checkpoint():
    model = Model()
    return {
        "epoch": 0,
        "global_step": 4,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": model.state_dict(),
        "loops": {"fit_loop": {"epoch_progress": {"current": {"processed": 1}}}},
        "callbacks": {"A": {"best": 1.0}},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}],
        "lr_schedulers": [],
        "hyper_parameters": {"a": 1},
    }


def assert_read_or_answered(path):
    try:
        found = read_for("fit", path, Model(), weights_only=True)
    except SettingError as error:
        assert_a_sentence(error)
    else:  # what a fit goes on with is there
        assert isinstance(found["state_dict"], Mapping)
        assert found["optimizer_states"]


@settings(SMALL, max_examples=100)
@given(some.data())
def test_checkpoint_is_read_or_answered(data):
    content = checkpoint()
    put(content, data.draw(some.sampled_from(list(places(content)))), data.draw(ODD))
    torch.save(content, "x.ckpt")
    assert_read_or_answered("x.ckpt")


@settings(SMALL, max_examples=200)
@given(some.binary(min_size=1, max_size=8), some.floats(0, 1), some.booleans(), some.booleans())
def test_file_with_other_bytes_is_read_or_answered(new, at, cuts, archive):
    torch.save(checkpoint(), "x.ckpt", _use_new_zipfile_serialization=archive)
    content = Path("x.ckpt").read_bytes()
    place = int(at * len(content))
    Path("x.ckpt").write_bytes(content[:place] + new + (b"" if cuts else content[place + len(new) :]))
    assert_read_or_answered("x.ckpt")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The content of a checkpoint after two epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("good"))
        assert run("fit") == 0
        return torch.load(next(Path().rglob("last.ckpt")), weights_only=True)


@settings(SMALL, max_examples=8)
@given(data=some.data())
def test_run_goes_on_from_a_changed_checkpoint_or_is_answered(good, data):
    content = copy.deepcopy(good)
    part = data.draw(some.sampled_from(["loops", "optimizer_states", "callbacks", "ImageData"]))
    put(content, data.draw(some.sampled_from([(part, *place) for place in places(content[part])])), data.draw(ODD))
    torch.save(content, "x.ckpt")
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            status = run("fit", "--ckpt_path", "x.ckpt", "--trainer.max_epochs", "3", "--trainer.logger", "false")
        except SystemExit as end:
            status = end.code
    sentences = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
    assert (status, len(sentences)) in ((0, 0), (2, 1))
