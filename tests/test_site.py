"""What the site's pages are made of: facts that classes declare, rules, and grids that are computed."""

import importlib
import json
import math
import re

import pytest

from lightning_reg.cli.advice import REMEDIES
from lightning_reg.core.facts import Position
from tests.conftest import REPOSITORY


@pytest.fixture
def site(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "docs")
    return importlib.import_module


def test_everybody_is_drawn_in_the_place_that_it_declares(site):
    generate, page = site("generate"), site("drawing").page()
    sections = dict(re.findall(r"^\(step-(\w+)\)=\n(.*?)(?=^\(|^:::)", page, flags=re.MULTILINE | re.DOTALL))
    for technique in generate.techniques():
        where = [place for place, text in sections.items() if f"[`{technique.__name__}`]" in text]
        assert where == [technique.place.value]
    assert set(re.findall(r'href="#step-(\w+)"', page)) == set(sections)


def test_the_order_around_the_step_has_every_position_once(site):
    generate, drawing = site("generate"), site("drawing")
    assert sorted([*drawing._BEFORE, *drawing._BEHIND, Position.OUTSIDE]) == sorted(Position)
    order = drawing.page().partition("## The order around the step")[2]
    for technique in [*generate.techniques(), *generate.monitors()]:
        assert order.count(f"[`{technique.__name__}`]") == (technique.position is not Position.OUTSIDE)


def test_the_guide_has_every_rule_with_what_to_append(site):
    for sign, table in site("remedies").tables().items():
        rows = {line.partition("**: ")[0].strip("| *"): line for line in table.splitlines()[2:]}
        assert list(rows) == [remedy.name for remedy in REMEDIES[sign]]
        assert all("`--" in line for line in rows.values())


@pytest.mark.parametrize("name", ["alpha", "half-life", "rho"])
def test_a_chart_has_a_frame_for_every_position_of_its_sliders(site, name):
    chart = site("playground")._PLOTS[name]()
    assert len(chart["frames"]) == math.prod(len(slider["values"]) for slider in chart["sliders"])
    assert all(slider["start"] < len(slider["values"]) for slider in chart["sliders"])
    assert "NaN" not in json.dumps(chart)


def test_pages_load_nothing_from_elsewhere():
    """What the build makes is looked through by .ci/docs."""
    for path in (REPOSITORY / "docs" / "_static").iterdir():
        assert not re.search(r"https?://(?!www\.w3\.org/)", path.read_text(encoding="utf-8")), path.name
