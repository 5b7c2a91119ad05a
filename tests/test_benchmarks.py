"""That benchmarks run, and what they write; not what they measure."""

import json

import pytest

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.tables import Table

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
