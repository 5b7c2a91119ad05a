"""A run that has been trained."""

import pytest

from tests.cli.helpers import run


@pytest.fixture
def trained(capsys):
    assert run("fit") == 0
    return capsys.readouterr().out
