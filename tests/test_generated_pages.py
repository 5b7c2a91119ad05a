"""Pages that list what there is are those that the classes give now."""

import importlib.util

import pytest

from tests.conftest import REPOSITORY

SPEC = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs" / "generate.py")
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)


@pytest.mark.parametrize(("path", "text"), generate.pages().items(), ids=lambda value: getattr(value, "name", ""))
def test_page_is_up_to_date(path, text):
    assert path.read_text(encoding="utf-8") == text, "python docs/generate.py makes it anew"


OTHERS = ("CheckpointSoup", "StrengthSchedule")  # no callbacks


def test_every_public_callback_is_in_the_readme_and_has_an_example():
    from lightning_reg import callbacks

    readme = (REPOSITORY / "README.md").read_text()
    page = (REPOSITORY / "docs" / "techniques.md").read_text()
    assert [name for name in callbacks.__all__ if f"`{name}`" not in readme] == []
    assert [name for name in callbacks.__all__ if f"`{name}(" not in page and name not in OTHERS] == []
