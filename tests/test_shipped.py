"""Shipped configurations are found by name, wherever the package lies."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_reg.settings import SettingError
from lightning_reg.shipped import configs_folder, find_config, shipped_configs
from tests.conftest import REPOSITORY


def test_checkout_has_them_beside_the_package():
    assert configs_folder() == REPOSITORY / "configs"
    assert set(shipped_configs().values()) == set((REPOSITORY / "configs").rglob("*.yaml"))


def test_installed_package_has_its_own(tmp_path):
    """As the wheel lays it out; ``configs`` needs neither torch nor Lightning, so this is quick."""
    site = tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "lightning_reg", site / "lightning_reg", ignore=ignored)
    shutil.copytree(REPOSITORY / "configs", site / "lightning_reg" / "configs")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "lightning_reg", "configs"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=environment).stdout
    subprocess.run([*command, "--to", "copies"], check=True, timeout=60, env=environment)
    names = {line.split()[0] for line in listed.splitlines() if line[:1].isalpha() and ":" not in line.split("  ")[0]}
    assert names == set(shipped_configs())
    for name, file in shipped_configs().items():
        assert Path("copies", f"{name}.yaml").read_bytes() == file.read_bytes()


def test_file_that_exists_comes_before_a_name():
    Path("digits_mlp").write_text("seed_everything: 1")
    assert find_config("config", "digits_mlp") == Path("digits_mlp")


def test_folder_of_that_name_does_not():
    Path("digits_mlp").mkdir()
    assert find_config("config", "digits_mlp") == REPOSITORY / "configs" / "digits_mlp.yaml"


@pytest.mark.parametrize("name", ["dropout", "studies/dropout", "dropout.yaml", "studies/dropout.yaml"])
def test_folder_of_the_kind_may_be_left_out(name):
    assert find_config("study", name, within="studies") == REPOSITORY / "configs" / "studies" / "dropout.yaml"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digitz_mlp", "but is 'digitz_mlp'; did you mean 'digits_mlp'?"),
        ("dropout", "did you mean 'studies/dropout' or 'techniques/dropout'?"),
        ("x" * 300, "must be a file that exists, or the name of a shipped configuration, but is 'xxx"),
        ("../configs/digits_mlp", "did you mean 'digits_mlp'?"),
    ],
)
def test_unknown_name_is_answered_with_what_was_meant(name, hint):
    with pytest.raises(SettingError) as error:
        find_config("config", name)
    assert hint in str(error.value)
