"""The installed package is enough: its command, configurations by name, commands that can be called again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_reg.cli import main
from lightning_reg.cli.invocation import invocation
from lightning_reg.shipped import shipped_configs
from tests.cli.helpers import SHORT
from tests.conftest import REPOSITORY


def test_names_train_as_paths_do(capsys):
    printed = []
    for configs in (
        ["digits_mlp", "techniques/mixup"],
        [str(REPOSITORY / "configs" / "digits_mlp.yaml"), str(REPOSITORY / "configs" / "techniques" / "mixup.yaml")],
    ):
        with pytest.raises(SystemExit) as exit_status:
            main(["fit", *(word for name in configs for word in ("--config", name)), "--print_config"])
        assert exit_status.value.code == 0
        printed.append(yaml.safe_load(capsys.readouterr().out))
    assert printed[0] == printed[1]
    assert printed[0]["data"]["init_args"]["mix"]["class_path"].endswith("Mixup")


def test_module_trains_outside_of_the_checkout():
    command = [sys.executable, "-m", "lightning_reg", "fit", "-c", "digits_mlp", *SHORT]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=150, env=environment)
    assert "epochs run   2" in done.stdout
    assert Path("runs/digits_mlp/version_0/checkpoints/best.ckpt").is_file()


def test_text_and_addresses_are_no_names(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", "digits_mlp", "--config", "trainer: {max_epochs: 3}", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_epochs"] == 3


def test_unknown_name_is_answered(capsys):
    assert main(["fit", "--config", "digits_mlp", "--config", "mixup"]) == 2
    assert "is 'mixup'; did you mean 'techniques/mixup'?" in capsys.readouterr().err


def test_study_goes_by_name_and_names_its_pieces(capsys):
    assert main(["study", "dropout", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["base"][0] in shipped_configs()


def test_configs_are_listed_shown_and_copied(capsys):
    assert main(["configs"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in shipped_configs())
    assert main(["configs", "digits_mlp"]) == 0
    assert capsys.readouterr().out == shipped_configs()["digits_mlp"].read_text()
    assert main(["configs", "digits_mlp", "techniques/mixup", "--to", "mine"]) == 0
    assert "2 of 2" in capsys.readouterr().out
    assert sorted(path.as_posix() for path in Path("mine").rglob("*.yaml")) == [
        "mine/digits_mlp.yaml",
        "mine/techniques/mixup.yaml",
    ]


def test_copies_replace_nothing(capsys):
    Path("digits_mlp.yaml").write_text("seed_everything: 1\n")
    assert main(["configs", "techniques/mixup", "digits_mlp", "--to", "."]) == 2
    assert "to must be a folder in which nothing would be replaced" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["digits_mlp.yaml"]
    assert Path("digits_mlp.yaml").read_text() == "seed_everything: 1\n"


@pytest.mark.parametrize("options", [["--to", "file"], ["mixup"]])
def test_what_configs_cannot_do_is_answered(options, capsys):
    Path("file").touch()
    assert main(["configs", *options]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("train.py", ["python", "train.py"]),
        ("../my project/train.py", ["python", "../my project/train.py"]),
        ("/somewhere/lightning_reg/__main__.py", ["python", "-m", "lightning_reg"]),
        ("/venv/bin/lightning-reg", ["lightning-reg"]),
        ("/venv/lib/pytest/__main__.py", ["lightning-reg"]),
        ("-c", ["lightning-reg"]),
    ],
)
def test_commands_that_are_shown_begin_as_the_one_that_was_used(script, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script])
    assert invocation() == words
