"""Notebooks and pages: what they show runs, from top to bottom."""

import json
import re
import sys
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))


def cells(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    notebook = ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", notebook)  # classes look for their module
    for cell in cells(path):
        exec(compile("".join(cell["source"]), path.name, "exec"), vars(notebook))
    assert notebook.mended.state.finished


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_kept_without_outputs(path):
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(path))


def test_monitors_of_the_page_on_loggers_make_sense():
    """The loggers themselves are in no extra; TensorBoard's tab is tried."""
    page = (REPOSITORY / "docs" / "loggers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names = {}
    exec(blocks[0], names)
    assert len(names["monitors"]) == 6
    for block in blocks[1:]:
        compile(block, "loggers.md", "exec")
    exec(next(block for block in blocks if "default_hp_metric" in block), names)
    assert names["trainer"].loggers
