"""What the site's pages are made of: facts that classes declare, rules, and grids that are computed."""

import importlib
import json
import math
import re

import pytest

from lightning_reg.cli.results.advice import REMEDIES
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


def kinds(site):
    generate = site("generate")
    return [*generate.techniques(), *generate.monitors()]


def test_everybody_has_a_plot_or_a_reason_why_not(site):
    plots, drawer = site("plots"), site("plots.registry").drawer
    bare = {kind.__name__ for kind in kinds(site) if kind.__name__ in plots.WITHOUT}
    assert bare == set(plots.WITHOUT)  # none is left of a technique that is gone
    assert all(plots.WITHOUT.values())
    assert [kind.__name__ for kind in kinds(site) if drawer(kind) is None and kind.__name__ not in bare] == []


def test_what_has_no_plot_of_its_own_is_drawn_as_its_family_or_its_place_is(site):
    """The site's build draws the others, too."""
    plots, registry = site("plots"), site("plots.registry")
    shared = [
        kind
        for kind in kinds(site)
        if registry.drawer(kind) is not registry.own(kind) and kind.__name__ not in plots.WITHOUT
    ]
    assert len(shared) > 5
    for kind in shared:
        figure, sentence = plots.draw(kind)
        assert sentence.endswith(".")
        assert figure.axes
        assert all(axes.has_data() or axes.texts for axes in figure.axes), kind.__name__


@pytest.mark.parametrize("place", ["batch", "gradient", "weights"])
def test_a_place_draws_what_nobody_else_does(site, place):
    from matplotlib.figure import Figure

    from lightning_reg.callbacks import GradientCentralization, Lookahead, ProgressiveResizing

    kind = {"batch": ProgressiveResizing, "gradient": GradientCentralization, "weights": Lookahead}[place]
    site("plots")  # whoever draws registers
    figure = Figure()
    assert site("plots.registry").of_place(kind)(kind, figure).endswith(".")
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    lines = [line.get_ydata() for axes in figure.axes[1:] for line in axes.lines[:2]]
    without, with_it = (images[0], images[5]) if images else lines
    assert without.shape != with_it.shape or (without != with_it).any()


def test_a_kind_that_nothing_draws_is_an_error(site):
    from lightning_reg.core.technique import Technique

    class Nowhere(Technique):
        place = None

    with pytest.raises(LookupError, match=r"nothing draws Nowhere: register a function in docs/plots"):
        site("plots").draw(Nowhere)


def test_gains_are_those_of_the_studies_and_costs_those_of_the_benchmark(site):
    worth = site("worth")
    page = (REPOSITORY / "docs" / "studies.md").read_text(encoding="utf-8")
    told = {(gain.technique, gain.on, gain.setting): str(gain).split("\N{NO-BREAK SPACE}") for gain in worth.gains()}
    digits, cifar = "300 digits, an MLP", "5,000 images of CIFAR-10, a CNN that has four others"
    for variant, key in {
        "SAM": ("SharpnessAwareMinimization", digits, ""),
        "Mixup": ("BatchMixing", digits, "Mixup"),
        "dropout": ("InsertDropout", "442 patients, an MLP", ""),
    }.items():
        assert re.search(rf"^\| {variant} \|[^|]*\| {re.escape(' '.join(told[key][:3]))} \|", page, re.MULTILINE)
    # Left out of a run that has all: what is gained without it is lost with it.
    value, _, error, _ = told["InsertDropout", cifar, ""]
    assert value.startswith("−")
    assert f"| without dropout | 53.33 ± 0.21 % | {value.replace('−', '+')} ± {error} |" in page
    for (name, setting), ratios in worth.costs().items():
        if not setting:
            rows = (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")
            assert all(f"| {name} | {ratio:.3f} |" in rows for ratio in ratios.values())


def test_a_page_says_what_a_technique_costs_and_brings(site):
    from lightning_reg.callbacks import L1Penalty, SharpnessAwareMinimization

    worth = site("worth")
    assert worth.rows(L1Penalty) == []
    assert "no [study]" in worth.facts(L1Penalty)[-1]
    assert "no [study]" not in "".join(worth.facts(SharpnessAwareMinimization))
    assert worth.rows(SharpnessAwareMinimization)[0].count("\n") >= 2
    drawn = worth.chart()
    names = {text.get_text() for text in drawn.axes[0].texts}
    assert {"SharpnessAwareMinimization", "ExponentialMovingAverage"} <= names


def test_a_page_has_the_formulas_of_what_a_technique_is_made_of(site):
    from lightning_reg.callbacks import GradientClipping, InsertDropBlock, L1Penalty, LabelSmoothing

    section = site("formulas").section
    (of_penalty,) = section(L1Penalty)
    assert r"P(w) = \lambda \sum_i |w_i|" in of_penalty
    names = re.findall(r":func:`(\w+)", of_penalty)
    assert names == ["l1_penalty", "add_elastic_net_gradient_", "soft_threshold_"]
    (of_layer,) = section(InsertDropBlock)  # of the layer that it inserts
    assert ":func:`drop_block() <lightning_reg.functional.forward.drop_block.drop_block>`" in of_layer
    assert "shrinking_factor()" in section(GradientClipping)[0]
    assert section(LabelSmoothing) == []


def test_a_page_has_what_the_audit_says_of_a_technique_beside_others(site):
    from lightning_reg.callbacks import L2Penalty, MaxNorm, UnitNorm

    section = site("interactions").section
    (of_penalty,) = section(L2Penalty)
    assert re.findall(r"^- (.*?):", of_penalty, re.MULTILINE) == [
        "L2Penalty under Adam",
        "L2Penalty and the optimizer's weight decay",
        "UnitNorm with L2Penalty",
    ]
    assert "UnitNorm with weight decay" in section(UnitNorm)[0]
    assert section(MaxNorm) == []


def test_pages_load_nothing_from_elsewhere():
    """What the build makes is looked through by .ci/docs."""
    for path in (REPOSITORY / "docs" / "_static").iterdir():
        assert not re.search(r"https?://(?!www\.w3\.org/)", path.read_text(encoding="utf-8")), path.name
