"""What a study can't be run with is said before anything is trained or written."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from lightning_reg.cli import main
from lightning_reg.cli.unattended import fitting
from lightning_reg.cli.unattended.plan import fits
from lightning_reg.studies.definition import read_study
from lightning_reg.studies.runs import Measured
from lightning_reg.studies.store import Store, result_text
from tests.cli.test_study import BASE, write


@pytest.fixture(autouse=True)
def _no_training(monkeypatch):
    def refuse(run, folder):
        raise AssertionError("nothing may be trained")

    monkeypatch.setattr(fitting, "fit", refuse)


def error_of(capsys, *args):
    assert main(["study", *args]) == 2
    assert not Path("runs").exists()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


VARIANTS = {
    "misspelt setting": (
        {"model.drop_prb": 0.5},
        "variants.b: .*drop_prb.*; did you mean model.drop_prob",
    ),
    "value of another type": ({"model.drop_prob": "much"}, "variants.b: .*drop_prob.*much"),
    "unknown callback": ({"trainer.callbacks+": "L2Penaly"}, "variants.b: .*L2Penaly"),
    "misspelt setting of a model": (
        {"model.hidden_size": [3], "data.train_size": 100},
        r"hidden_size is no setting of MLP \(model\); did you mean model.hidden_sizes\?$",
    ),
    "null": ({"model.drop_prob": None, "data.train_size": 100}, "model.drop_prob must be a number, but is null$"),
    "no such overlay": ("nowhere.yaml", "variants.b must name a configuration that exists"),
    "several devices": ({"trainer.devices": 2}, "variants.b: trainer.devices must be 1 in a study"),
    "changes nothing": ({"model.drop_prob": 0.3}, "variants.b changes nothing: like 'a', it is the base as it is"),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_a_variant_that_cannot_be_run(capsys, case):
    variant, message = VARIANTS[case]
    error = error_of(capsys, write(variants={"a": {}, "b": variant}))
    assert re.search(message, error), error


def test_two_variants_that_are_the_same(capsys):
    overlay = Path("overlay.yaml")
    overlay.write_text(yaml.safe_dump({"model": {"init_args": {"drop_prob": 0.5}}}))
    error = error_of(capsys, write(variants={"a": {"model.drop_prob": 0.5}, "b": "overlay.yaml"}))
    assert "variants 'a' and 'b' are the same" in error


def test_a_base_that_does_not_exist(capsys):
    assert "base must name a configuration that exists" in error_of(capsys, write(base="nowhere.yaml"))
    assert "base must name a configuration that exists" in error_of(capsys, write(base="y" * 300))


def test_predictions_of_data_that_does_not_tell_its_targets(capsys):
    base = [str(BASE), {"data": "lightning.pytorch.demos.boring_classes.BoringDataModule"}]
    error = error_of(capsys, write(base=base, variants={"a": {}}, collect=["predictions"]))
    assert "variants.a: collect must leave out predictions" in error


def test_options_that_cannot_be_used(capsys):
    path = write()
    assert "did you mean 'mnist'" in error_of(capsys, path, "--data", "minst")
    assert "data: root '.' must have a folder 'train' with a folder for each class" in error_of(
        capsys, path, "--data", "."
    )
    assert "root must be left out where data is a folder" in error_of(capsys, path, "--data", ".", "--root", "x")
    assert "only must be one of plain, L2, mixed" in error_of(capsys, path, "--only", "L1")
    assert "data must be digits, mnist, " in error_of(capsys, path, "--data", "y" * 300)
    assert "seeds must be a whole number of at least 1" in error_of(capsys, path, "--seeds", "0")
    assert "seeds must be in [1, 10000], but is 100000000000" in error_of(capsys, path, "--seeds", "100000000000")
    assert "jobs must be a whole number of at least 1" in error_of(capsys, path, "--jobs", "0")
    assert "jobs must be left out with --cluster" in error_of(capsys, path, "--jobs", "2", "--cluster", "auto")
    assert "gpus_per_run must be left out without --cluster" in error_of(capsys, path, "--gpus-per-run", "1")
    assert "gpus_per_run must be in [0, ∞), but is -1.0" in error_of(
        capsys, path, "--cluster", "auto", "--gpus-per-run", "-1"
    )
    assert (
        "study file must be a file that exists, or the name of a shipped configuration, but is 'nowhere.yaml'"
        in error_of(capsys, "nowhere.yaml")
    )


def test_a_command_line_that_cannot_be_read(capsys):
    path = write()
    assert "unrecognized arguments: --jbos 2; did you mean '--jobs'?" in error_of(capsys, path, "--jbos", "2")
    assert "argument --seeds: invalid int value: 'many'; see lightning-reg study --help" in error_of(
        capsys, path, "--seeds", "many"
    )
    assert "the following arguments are required: FILE" in error_of(capsys)
    Path("bad.yaml").write_text("title: [")
    assert "error: study file 'bad.yaml' isn't " in error_of(capsys, "bad.yaml", "--print_config")


def test_results_that_somebody_changed(capsys, monkeypatch):
    path = write(variants={"a": {}}, seeds=1)
    (run,) = fits(read_study(path))
    store = Store("there", "example")
    for content in ("{", "[1]", "{}", '{"metrics": null}', '{"metrics": {}, "curves": {}}', None):
        with store.locked():
            store.prepare(run)
        result = store.run_folder(run) / "result.json"
        result.write_text(content) if content is not None else result.mkdir()
        error = error_of(capsys, path, "--output", "there")
        assert error.endswith(f"; remove '{result}', and its run is done again")
        assert len(error) < 300
    Path("there/study.json").write_text("[]")
    assert "doesn't say of which" in error_of(capsys, path, "--output", "there")


def test_a_result_without_the_metric_is_named_where_others_have_it(capsys):
    path = write(variants={"a": {}}, seeds=2)
    store = Store("there", "example")
    folders = []
    for run, metric in zip(fits(read_study(path)), ("test/accuracy", "test/loss"), strict=True):
        with store.locked():
            store.prepare(run)
        store.write_result(run, result_text(run, Measured({metric: 0.5}), 1.0))
        folders.append(store.run_folder(run))
    assert main(["study", path, "--output", "there"]) == 2
    assert capsys.readouterr().err == (
        f"error: the result in '{folders[1]}' has no test/accuracy, which others have; remove '{folders[1]}', and its "
        "run is done again\n"
    )


def test_a_folder_that_another_process_is_at(capsys):
    with Store("there", "example").locked():
        Path("there/study.json").write_text('{"study": "example", "format": 1}')
        assert main(["study", write(seeds=1), "--output", "there"]) == 2
    assert re.fullmatch(r"error: output must be a folder that no other process is at, .*\n", capsys.readouterr().err)


def test_options_of_a_computation(capsys):
    study = {"function": "tests.studies.test_runs.halved", "variants": {"a": {"x": 2}}, "seeds": 1, "metric": "y"}
    Path("sums.yaml").write_text(yaml.safe_dump(study))
    assert "data must be left out of a study that trains nothing" in error_of(capsys, "sums.yaml", "--data", "mnist")


def test_another_study_s_folder(capsys):
    with Store("there", "other").locked():
        pass
    error = error_of(capsys, write(), "--output", "there")
    assert "output must be a folder of 'example', but 'there' is of 'other'" in error
    Path("there/study.json").write_text('{"study": "example", "format": 0}')
    assert "in format 1, that of this version, but 'there' is in 0" in error_of(capsys, write(), "--output", "there")
    Path("thesis").mkdir()
    Path("thesis", "text.txt").touch()
    assert "'thesis' holds something else" in error_of(capsys, write(), "--output", "thesis")
    assert [path.name for path in Path("thesis").iterdir()] == ["text.txt"]


def test_a_metric_that_is_not_measured(capsys):
    error = error_of(capsys, write(metric="test/acuracy", seeds=1))
    assert "metric must be one of " in error
    assert "did you mean 'test/accuracy'" in error


def test_what_draws_the_report_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in error_of(capsys, write())
