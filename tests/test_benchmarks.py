"""That benchmarks run, and what they write; not what they measure."""

import json

import pytest

from benchmarks import cocktail
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.page import PAGE, rendered
from benchmarks.tables import Table
from benchmarks.targets import judged
from tests.conftest import REPOSITORY

SLOW = ("startup",)  # starts processes


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in BENCHMARKS])
def test_every_benchmark_runs_at_its_smallest(name, tmp_path, capsys):
    assert main([name, "--smallest", "--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]) == 0
    printed = capsys.readouterr().out
    tables = json.loads((tmp_path / "a.json").read_text())["benchmarks"][name]
    page = (tmp_path / "a.md").read_text()
    assert tables
    for table in tables:
        assert table["rows"]
        assert table["title"] in printed
        assert f"### {table['title']}" in page
        assert all(len(row) == len(table["columns"]) for row in table["rows"])


def test_what_a_file_holds_stays_but_for_what_is_measured_again(tmp_path):
    path = tmp_path / "a.json"
    main(["scaling", "--smallest", "--json", str(path)])
    first = json.loads(path.read_text())
    first["benchmarks"]["scaling"][0]["rows"].append(
        ["another", *["0"] * (len(first["benchmarks"]["scaling"][0]["columns"]) - 1)]
    )
    first["benchmarks"]["scaling"][0]["rows"][0][1] = "old"
    path.write_text(json.dumps(first))
    main(["layers", "scaling", "--smallest", "--json", str(path)])
    second = json.loads(path.read_text())["benchmarks"]
    assert set(second) == {"scaling", "layers"}
    assert [row[0] for row in second["scaling"][0]["rows"]] == [
        row[0] for row in first["benchmarks"]["scaling"][0]["rows"]
    ]
    assert second["scaling"][0]["rows"][0][1] != "old"


def test_an_unknown_benchmark_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "there is no benchmark 'nonsense'; there are startup" in capsys.readouterr().err


def test_a_table_is_aligned_and_escapes_what_markdown_reads():
    table = Table("What", ["name", "ms"])
    table.add("a|b", 1.234)
    table.add("  below", None)
    assert table.text().splitlines() == ["What", "  name       ms", "  a|b      1.23", "    below"]
    assert table.markdown().splitlines()[2:] == [
        "| name | ms |",
        "|---|---:|",
        "| a\\|b | 1.23 |",
        "| &ensp;below |  |",
    ]
    with pytest.raises(ValueError, match="2 cells, but has 1"):
        table.add("alone")


def run_of(table):
    return {"machine": "a machine", "benchmarks": {"memory": [table.data()]}}


def test_a_target_is_judged_by_what_was_measured():
    held = Table("Memory of techniques", ["technique", "held", "at the peak"])
    held.add("ExponentialMovingAverage", "1.00", "1.00")
    held.add("SharpnessAwareMinimization", "0.00", "1.25")
    steps = Table("What techniques add to a step: cnn", ["technique", "× a bare step", "adds ms"])
    for name, ratio in {"A": 1.01, "  by hand": 9.0, "B": 1.03, "C, every step": 3.0}.items():
        steps.add(name, f"{ratio:.3f}", None)
    rows = {row[0]: row[1:] for row in judged({"memory": [held.data()], "overhead": [steps.data()]}).rows}
    assert rows["memory of a moving average, copies"] == ["≤ 1", "1", "met"]
    assert rows["memory of SAM at its peak, copies"] == ["≤ 1", "1.25", "**missed by 0.25**"]
    assert rows["every callback but SAM, cnn"] == ["≤ 1.02", "1.01 to 1.03", "**missed by 1 of 2**: B 1.03"]
    assert rows["SAM, mlp"] == ["≤ 2.05", None, "not measured"]


def test_figures_are_divided_by_what_they_stand_beside_and_more_can_be_better():
    steps = Table("What techniques add to a step: mlp", ["technique", "× a bare step", "adds ms"])
    steps.add("ExponentialMovingAverage", "1.10", "1.50")
    steps.add("  timm's ModelEmaV3", "1.20", "2.00")
    sizes = Table("Cost by the number of weights", ["pass", *(x for n in "567" for x in (f"{n}: ms", "of the limit"))])
    sizes.add("moving average (EMA)", "1", "10%", "1", "20%", "1", "80%")
    sizes.add("clipping by norm", "1", "90%", "1", "90%", "1", "40%")
    loading = Table(
        "An epoch of 50,000 color images of 32×32, augmented as basic does", ["loader", "s", "ours faster by"]
    )
    loading.add("ours", 2.0, None)
    loading.add("torchvision, PIL, 2 workers", 18.0, 9.0)
    measured = {"overhead": [steps.data()], "scaling": [sizes.data()], "data_loading": [loading.data()]}
    rows = {row[0]: row[1:] for row in judged(measured).rows}
    assert rows["basic augmentation beside torchvision"] == ["≥ 10", "9", "**missed by 1**"]
    steps.rows[1][2] = "-0.30"  # less than the noise
    assert {row[0]: row[1:] for row in judged({"overhead": [steps.data()]}).rows}[
        "moving average, what it adds beside timm's, mlp"
    ] == ["≤ 1", None, "can't be told"]
    assert rows["moving average, what it adds beside timm's, mlp"] == ["≤ 1", "0.75", "met"]
    assert rows["moving average at 10^7 weights, % of copying"] == ["≥ 50", "80", "met"]
    assert rows["clipping by norm at 10^7 weights, % of copying"] == ["≥ 50", "40", "**missed by 10**"]


def test_the_page_is_filled_with_what_was_measured(tmp_path):
    table = Table("Memory of techniques", ["technique", "held"])
    table.add("X", "1.00")
    (tmp_path / "cpu.json").write_text(json.dumps(run_of(table)))
    (tmp_path / "template.md").write_text("On {{cpu: machine}}.\n\n{{cpu: memory}}\n")
    assert rendered(tmp_path) == f"On a machine.\n\n{table.markdown().strip()}\n"
    (tmp_path / "template.md").write_text("{{cpu: nonsense}}")
    with pytest.raises(KeyError, match="nonsense"):
        rendered(tmp_path)


def test_the_page_in_docs_is_what_was_measured():
    """Else: python -m benchmarks.page."""
    assert PAGE.read_text(encoding="utf-8") == rendered()


def test_every_target_has_a_figure_in_the_run_that_is_shown():
    measured = json.loads((PAGE.parent / "benchmarks" / "cpu.json").read_text(encoding="utf-8"))["benchmarks"]
    assert [row[0] for row in judged(measured).rows if row[3] == "not measured"] == []


def test_page_of_the_cocktail_is_made_of_what_was_measured():
    results = json.loads((REPOSITORY / cocktail.MEASURED).read_text())
    assert (REPOSITORY / "docs" / "cocktail.md").read_text(encoding="utf-8") == cocktail.page(results)
    ranks = cocktail._ranks({"a": {"plain": 1, "dropout": 2, "cocktail": 4, "boosting": 2}})
    assert ranks == {"plain": [4.0], "dropout": [2.5], "cocktail": [1.0], "boosting": [2.5]}
