"""The package's types serve who imports it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

MISTAKES = """
from lightning_reg import L2Penalty, NoSuchThing

L2Penalty(weight="much")
L2Penalty(strength=1.0)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_user_code_passes_in_the_strictest_way_and_mistakes_do_not():
    """Under none of our settings, and without looking into our own code."""
    Path("mistakes.py").write_text(MISTAKES)
    Path("mypy.ini").write_text("[mypy]\n")
    options = ["--strict", "--follow-imports", "silent", "--config-file", "mypy.ini", "--cache-dir", os.devnull]
    command = [sys.executable, "-m", "mypy", *options, str(REPOSITORY / "tests" / "user_code.py"), "mistakes.py"]
    environment = {**os.environ, "MYPYPATH": str(REPOSITORY)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=550, env=environment)
    said = done.stdout
    assert 'mistakes.py:2: error: Module "lightning_reg" has no attribute "NoSuchThing"' in said
    assert 'mistakes.py:4: error: Argument "weight" to "L2Penalty" has incompatible type "str"' in said
    assert 'mistakes.py:5: error: Unexpected keyword argument "strength"' in said
    assert not [line for line in said.splitlines() if "error:" in line and not line.startswith("mistakes.py")], said


def test_types_are_shipped():
    assert (REPOSITORY / "lightning_reg" / "py.typed").is_file()
