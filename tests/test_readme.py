"""The README and the documents promise nothing that doesn't run."""

import re
import shlex

import pytest

from lightning_reg import callbacks
from lightning_reg.cli import main
from lightning_reg.cli.study import parser
from lightning_reg.search.definition import read_search
from lightning_reg.shipped import find_config
from lightning_reg.studies.definition import read_study
from tests.conftest import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(page):
    return re.findall(r"```(\w+)\n(.*?)```", page.read_text(), flags=re.DOTALL)


COMMANDS = [
    line.split("#")[0].split("&&")[-1].strip()
    for page in PAGES
    for language, block in blocks(page)
    if language == "bash"
    for line in block.splitlines()
    if "train.py " in line and "help" not in line and " FILE " not in line
]


def test_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names, shown = {"__name__": "readme"}, []
    for code in [block for language, block in blocks(PAGES[0]) if language == "python"]:
        exec(compile(code, "README.md", "exec"), names)  # a later block goes on where an earlier one ended
        shown.append(capsys.readouterr().out)
    assert names["trainer"].state.finished
    assert len(names["found"].outcome.tried) >= 30
    assert shown[-1] == f"{names['found']}\n"  # no progress bar or summary of any trial
    assert (tmp_path / "runs" / "search" / "python" / "report.html").is_file()


def test_commands_parse(monkeypatch, image_folder):
    """Each with --print_config, which reads configurations and arguments and stops before anything is built."""
    monkeypatch.chdir(REPOSITORY)
    assert len(COMMANDS) >= 15
    for command in COMMANDS:
        words = shlex.split(command)[2:]
        if not words:
            continue
        if words[0] == "study":
            assert read_study(find_config("study", parser().parse_args(words[1:]).file, within="studies"))
            continue
        if words[0] == "search":
            assert read_search(find_config("search", words[1], within="search"))
            continue
        with pytest.raises(SystemExit) as exit_status:
            main([*words, "--print_config"])
        assert exit_status.value.code == 0, command


def source_of(target):
    """Returns what a page that is made when the site is built is made of."""
    built = re.search(r"docs/(cards|built)/(?:(gallery|textbook)/)?(\w+)\.(?:md|rst)$", str(target))
    if built is None:
        return target
    folder, scripts, name = built.groups()
    if folder == "cards":
        return REPOSITORY / "docs" / ("conf.py" if name == "index" or name in callbacks.__all__ else f"cards/{name}.md")
    if scripts:
        return REPOSITORY / "docs" / scripts / ("README.rst" if name == "index" else f"{name}.py")
    return REPOSITORY / "docs" / {"step": "drawing.py"}.get(name, name)


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "SECURITY.md"], ids=lambda page: page.name)
def test_files_and_headings_that_are_linked_exist(page):
    for link, heading in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        target = source_of((page.parent / link).resolve()) if link else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


def test_the_readme_is_short():
    assert len(PAGES[0].read_text().splitlines()) <= 150
