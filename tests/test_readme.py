"""The README promises nothing that doesn't run."""

import re
import shlex

import pytest

from lightning_reg.cli import main
from lightning_reg.cli.study import parser
from lightning_reg.shipped import find_config
from lightning_reg.studies.definition import read_study
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split("#")[0].split("&&")[-1].strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    if "train.py " in line and "help" not in line
]


@pytest.mark.parametrize("code", [block for language, block in BLOCKS if language == "python"])
def test_python_runs(code):
    names = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    assert names["trainer"].state.finished


def test_commands_parse(monkeypatch, image_folder):
    """Each with --print_config, which reads configurations and arguments and stops before anything is built."""
    monkeypatch.chdir(REPOSITORY)
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        words = shlex.split(command)[2:]
        if not words:
            continue
        if words[0] == "study":
            assert read_study(find_config("study", parser().parse_args(words[1:]).file, within="studies"))
            continue
        with pytest.raises(SystemExit) as exit_status:
            main([*words, "--print_config"])
        assert exit_status.value.code == 0, command


def test_files_that_are_linked_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert all((REPOSITORY / link).exists() for link in links)
