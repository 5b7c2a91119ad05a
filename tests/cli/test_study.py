"""Studies as a user meets them: real, short trainings."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lightning_reg.cli import main
from lightning_reg.cli.results import summary
from lightning_reg.cli.unattended import fitting
from lightning_reg.cli.unattended.plan import fits
from lightning_reg.data import ImageData
from lightning_reg.studies.definition import read_study
from lightning_reg.studies.executor import InProcessExecutor
from lightning_reg.studies.store import Store
from tests.conftest import REPOSITORY
from tests.studies.processes import is_alive, wait_for

BASE = REPOSITORY / "configs" / "digits_mlp.yaml"
STUDY = {
    "title": "Example",
    "question": "Does it work?",
    "base": [
        str(BASE),
        {"trainer.max_epochs": 2, "data.train_size": 100, "model.hidden_sizes": [16], "trainer.log_every_n_steps": 1},
    ],
    "variants": {
        "plain": {"model.drop_prob": 0.0},
        "L2": [
            {"model.drop_prob": 0.0, "trainer.callbacks+": {"class_path": "L2Penalty", "init_args": {"weight": 0.1}}}
        ],
        "mixed": str(REPOSITORY / "configs" / "techniques" / "mixup.yaml"),
    },
    "seeds": 2,
}
RUNS = Path("runs/studies/example/runs")


@pytest.fixture
def outcomes(monkeypatch, here):
    """What is reported, in place of the report."""
    reported = []

    def write_report(outcome, folder):
        reported.append(outcome)
        return folder / "report.html"

    monkeypatch.setattr("lightning_reg.cli.study.write_report", write_report)
    return reported


@pytest.fixture
def here(monkeypatch):
    """Runs are done in this very process: what a worker of its own would import takes seconds."""
    monkeypatch.setattr("lightning_reg.cli.options.LocalExecutor", lambda _: InProcessExecutor())


@pytest.fixture
def trained(monkeypatch, here):
    """Which runs were trained, in order."""
    runs, fit = [], fitting.fit

    def counted(run, folder):
        runs.append((run.variant, run.seed))
        return fit(run, folder)

    monkeypatch.setattr(fitting, "fit", counted)
    return runs


def write(name="example", **changes):
    path = Path(f"{name}.yaml")
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return str(path)


def two(**changes):
    return write(variants={name: STUDY["variants"][name] for name in ("plain", "L2")}, **changes)


def files(folder="runs/studies/example"):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_a_study_is_run_and_reported(outcomes, trained, capsys):
    assert main(["study", two(collect=["weights", "activations"])]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Example\nDoes it work?\n4 runs: 2 variants, 2 seeds; 0 done already\n")
    assert re.search(r"^plain +\d+\.\d\d ± \d+\.\d\d % \(2 seeds\)$", out, re.MULTILINE)
    assert out.rstrip().endswith("report: runs/studies/example/report.html")
    assert "Epoch" not in err  # one bar, of runs
    assert "4/4" in err
    (outcome,) = outcomes
    assert trained == [(variant, seed) for seed in (0, 1) for variant in ("plain", "L2")]
    assert {(result.variant, result.seed) for result in outcome.results} == set(trained)
    result = outcome.results[0]
    names = ("loss", "accuracy", "balanced_accuracy")
    assert {f"{split}/{name}" for split in ("train", "validation", "test") for name in names} == set(result.metrics)
    assert [epoch for epoch, _ in result.curves["train/loss"]] == [0, 1]
    assert result.collected["weights"]["parameters"] == 64 * 16 + 16 * 10
    assert len(result.collected["activations"]["layers"]) == 2
    assert outcome.command == "lightning-reg study example.yaml"
    assert {"torch", "lightning", "Python", "processor", "lightning_reg"} <= set(outcome.versions)
    assert outcome.seconds == pytest.approx(sum(result.seconds for result in outcome.results))
    assert not [name for name in files() if name.endswith(".ckpt") or "tfevents" in name]


def test_curves_go_on_behind_the_best_epoch(outcomes):
    """Whose checkpoint holds the curves as they were then. Here the worst epoch counts as the best: the first."""
    longer = {"checkpoint.mode": "max", "trainer.max_epochs": 4}
    assert main(["study", write(base=[*STUDY["base"], longer], seeds=1)]) == 0
    (outcome,) = outcomes
    for result in outcome.results:
        losses = [loss for _, loss in result.curves["validation/loss"]]
        assert len(losses) == 4
        assert losses[0] == max(losses)
        assert result.metrics["validation/loss"] == pytest.approx(losses[0], rel=1e-5)


def test_a_run_is_what_fit_does_with_the_printed_command(outcomes, monkeypatch):
    techniques = REPOSITORY / "configs" / "techniques"
    averaged = [str(techniques / "exponential_moving_average.yaml"), str(techniques / "insert_dropout.yaml")]
    variants = {"averaged": averaged, "mixed": STUDY["variants"]["mixed"]}
    assert main(["study", write(seeds=[3], variants=variants, collect=["weights", "activations"])]) == 0
    (outcome,) = outcomes
    measured = {}
    lines = summary.metric_lines
    monkeypatch.setattr(summary, "metric_lines", lambda results: measured.update(results) or lines(results))
    for result in outcome.results:
        words = shlex.split(outcome.commands[result.variant])
        assert words[:2] == ["lightning-reg", "fit"]
        assert main([*words[1:], "--trainer.enable_progress_bar", "false"]) == 0
        found = {f"{split}/{name}": value for split, run in measured.items() for name, value in run.items()}
        assert found == result.metrics  # to the bit
    assert len({result.metrics["test/loss"] for result in outcome.results}) == 2


def test_a_seed_is_the_same_split_for_all_and_another_for_the_next():
    splits = {}
    for run in fits(read_study(two())):
        data = ImageData(**fitting.resolve(run.command)["data"]["init_args"])
        data.setup("fit")
        names = {part: data.sample_names(part) for part in ("train", "val", "test")}
        splits.setdefault(run.seed, []).append(names)
    assert splits[0][0] == splits[0][1] != splits[1][0] == splits[1][1]
    assert len(splits[0][0]["train"]) == 100
    assert splits[0][0]["test"] == splits[1][0]["test"]


def test_a_changed_file_reuses_what_is_unchanged(outcomes, trained, capsys):
    plain = STUDY["variants"]["plain"]
    assert main(["study", write(variants={"plain": plain}, seeds=1)]) == 0
    changed = write(variants={"renamed": plain, "L2": STUDY["variants"]["L2"]}, seeds=1, title="Another")
    assert main(["study", changed]) == 0
    assert trained == [("plain", 0), ("L2", 0)]
    assert outcomes[1].results[0].metrics == outcomes[0].results[0].metrics
    assert outcomes[1].results[0].variant == "renamed"
    capsys.readouterr()
    assert main(["study", changed]) == 0
    assert "2 done already" in capsys.readouterr().out
    assert len(trained) == 2
    assert outcomes[2].results == outcomes[1].results
    shorter = [str(BASE), {**STUDY["base"][1], "trainer.max_epochs": 1}]
    assert main(["study", write(variants={"plain": plain}, seeds=1, base=shorter)]) == 0
    assert trained[2:] == [("plain", 0)]


def test_options_choose_variants_seeds_and_form(outcomes, trained, capsys):
    path = write(quick={"seeds": 2, "base": {"trainer.max_epochs": 1}, "minutes": 0.5}, minutes=12)
    assert main(["study", path, "--quick", "--only", "L2", "mixed", "--seeds", "1", "--output", "here"]) == 0
    out = capsys.readouterr().out
    assert "2 runs: 2 variants, 1 seed; 0 done already" in out
    assert "They take about 10.0 s on two cores." in out  # half a minute · 2/3 · 1/2
    assert trained == [("L2", 0), ("mixed", 0)]
    assert outcomes[0].quick
    assert outcomes[0].study.baseline == "L2"
    assert [len(result.curves["train/loss"]) for result in outcomes[0].results] == [1, 1]
    assert "study.json" in files("here")
    assert not Path("runs").exists()


def test_other_data_takes_the_place_of_the_study_s(outcomes, image_folder):
    root = image_folder(("train", "test"), classes=3, size=16)
    path = two(seeds=1, data={"image_folder": {"base": {"data.train_size": 15, "data.val_size": 9}}})
    assert main(["study", path, "--data", str(root)]) == 0
    (outcome,) = outcomes
    assert f"--data.root {root}" in outcome.commands["plain"]
    assert "--data.train_size 15" in outcome.commands["plain"]
    assert Path("runs/studies/example-images/study.json").exists()


def test_the_short_form_on_other_data_has_its_own_settings_after_all_others(outcomes, image_folder, capsys):
    root = image_folder(("train", "test"), classes=3, size=16)
    small = {"data.train_size": 15, "data.val_size": 9}
    data = {"image_folder": {"base": small, "minutes": 60, "quick": {"base": {"data.train_size": 12}}}}
    path = two(seeds=1, minutes=12, quick={"base": {"trainer.max_epochs": 1}, "minutes": 1}, data=data)
    assert main(["study", path, "--data", str(root), "--quick", "--only", "plain"]) == 0
    command = outcomes[0].commands["plain"]
    assert command.index("train_size 15") < command.index("max_epochs 1") < command.index("train_size 12")
    assert len(outcomes[0].results[0].curves["train/loss"]) == 1
    assert "How long they take is seen when the first is done." in capsys.readouterr().out


def test_a_failing_variant_is_told_and_the_others_finish(outcomes, trained, capsys):
    penalty = {"class_path": "L2Penalty", "init_args": {"weight": 1, "include": ["no*"]}}  # seen when the fit starts
    path = write(variants={"plain": {}, "torn": {"trainer.callbacks+": penalty}}, seeds=1)
    assert main(["study", path]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^plain +\d", out, re.MULTILINE)
    assert re.search(r"^torn +no run has ended well$", out, re.MULTILINE)
    assert re.search(r"^failed: torn, seed 0: .*'no\*'", out, re.MULTILINE)
    assert [failure.variant for failure in outcomes[0].failures] == ["torn"]
    assert [name for name in files() if name.endswith("failure.txt")]
    assert main(["study", path]) == 1  # tried again, alone
    assert trained == [("plain", 0), ("torn", 0), ("torn", 0)]


@pytest.mark.slow
def test_predictions_are_the_same_after_loading_in_a_new_process(outcomes):
    assert main(["study", write(variants={"plain": {}}, seeds=1, collect=["reload", "predictions"])]) == 0
    (result,) = outcomes[0].results
    assert result.collected["reload"] == {"largest_difference": 0.0, "samples": 359, "same_classes": True}
    found = result.collected["predictions"]
    right = sum(a == b for a, b in zip(found["targets"], found["classes"], strict=True))
    assert right / 359 == pytest.approx(result.metrics["test/accuracy"])
    assert not [name for name in files() if name.endswith((".ckpt", ".pt"))]


def started(path, *options):
    """Starts the command in a process, as a terminal does: with a group of its own, which Ctrl-C reaches as a whole."""
    code = "import sys; from lightning_reg.cli import main; sys.exit(main(sys.argv[1:]))"
    # As many threads as here: sums are made in another order by more, and Adam's first steps make much of that.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", code, "study", path, *options]
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_a_run(process, *, and_for=lambda: True):
    """Waits until one run is done, and returns whose process did it."""

    def is_there():
        assert process.poll() is None
        return list(RUNS.glob("*/result.json")) and and_for()

    wait_for(is_there, seconds=120)
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(pid) for path in children for pid in path.read_text().split()]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kill_9_in_the_midst_of_a_training(outcomes, trained):
    path = two(seeds=2)
    with started(path) as process:
        children = wait_for_a_run(process, and_for=lambda: list(RUNS.glob("*/checkpoints/*.ckpt")))
        process.kill()
    killed = time.monotonic()
    wait_for(lambda: not any(map(is_alive, children)), seconds=2 - (time.monotonic() - killed))
    finished = {file.parent.name: file.read_text() for file in RUNS.glob("*/result.json")}
    assert 1 <= len(finished) < 4
    assert main(["study", path]) == 0
    assert len(trained) == 4 - len(finished)
    assert all((RUNS / key / "result.json").read_text() == text for key, text in finished.items())
    assert not [name for name in files() if name.endswith(".ckpt")]
    # What the killed process has done and what this one does are runs of one kind.
    results = {(result.variant, result.seed): result.metrics for result in outcomes[0].results}
    assert main(["study", path, "--output", "afresh", "--only", "plain", "--seeds", "1"]) == 0
    assert outcomes[1].results[0].metrics == results["plain", 0]


def test_a_computation_is_a_study_too(outcomes, capsys):
    study = {
        "function": "tests.studies.test_runs.halved",
        "variants": {"a": {"x": 2}, "b": {"x": 6}},
        "seeds": 3,
        "metric": "y",
    }
    Path("sums.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    assert main(["study", "sums.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "a        2 ± 0.58 (3 seeds)" in lines  # 1/√3, of 1, 2, 3
    assert "b        4 ± 0.58 (3 seeds)" in lines
    assert "b has the highest y, 4 ± 0.58" in " ".join(lines)
    assert outcomes[0].commands == {}
    Path("tiny.yaml").write_text(yaml.safe_dump({**study, "variants": {"a": {"x": 2e-9, "power": 1.0}}, "seeds": 1}))
    assert main(["study", "tiny.yaml"]) == 0
    assert "a        1e−09 (1 seed)" in capsys.readouterr().out.splitlines()
    key = json.loads(next(Path("runs/studies/sums/runs").glob("*/result.json")).read_text())
    assert set(key) == {"variant", "seed", "metrics", "curves", "collected", "seconds"}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("options", [(), ("--jobs", "2")], ids=["alone", "two jobs"])
def test_ctrl_c_ends_quietly_says_how_to_go_on_and_leaves_nothing_behind(outcomes, options):
    path = two(seeds=5)
    with started(path, *options) as process:
        children = wait_for_a_run(process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    wait_for(lambda: not any(map(is_alive, children)), seconds=2)
    done = [json.loads(file.read_text()) for file in RUNS.glob("*/result.json")]
    assert 1 <= len(done) < 10
    command = shlex.join(["lightning-reg", "study", path, *options])
    assert f"Interrupted; {len(done)} of 10 runs are done. To go on:\n  {command}\n" in err
    assert "Traceback" not in err
    assert len(list(RUNS.iterdir())) == len(done)  # no folder of a run that isn't done
    assert not [name for name in files() if name.endswith(".ckpt")]
    # Whoever did it, and however many at once: it comes to the same bits.
    alone = ["--only", done[0]["variant"], "--seeds", str(done[0]["seed"] + 1), "--output", "alone"]
    assert main(["study", path, *alone]) == 0
    assert outcomes[0].results[-1].metrics == done[0]["metrics"]


def test_a_finished_study_in_a_folder_that_cannot_be_written_prints_its_results(outcomes, trained, capsys, monkeypatch):
    path = two(seeds=1)
    assert main(["study", path]) == 0
    before = {name: Path("runs/studies/example", name).stat().st_mtime_ns for name in files()}
    first = capsys.readouterr().out

    def refuse(outcome, folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder / "report.html"))

    def untouched(*arguments, **settings):
        raise AssertionError("nothing may be written")

    monkeypatch.setattr("lightning_reg.cli.study.write_report", refuse)
    monkeypatch.setattr(Store, "locked", untouched)
    assert main(["study", path]) == 0
    out, err = capsys.readouterr()
    results = [line for line in first.splitlines() if "±" in line or "seed)" in line]
    assert results
    assert set(results) <= set(out.splitlines())
    assert err == "The report can't be written: [Errno 13] Permission denied: 'runs/studies/example/report.html'\n"
    assert len(trained) == 2
    assert {name: Path("runs/studies/example", name).stat().st_mtime_ns for name in files()} == before


def test_print_config_prints_what_the_file_leaves_out_and_runs_nothing(capsys):
    assert main(["study", two(), "--print_config"]) == 0
    assert "collect: []" in (out := capsys.readouterr().out)
    assert yaml.safe_load(out)["title"] == "Example"
    assert not Path("runs").exists()


def test_help_names_the_options_and_the_keys_of_the_file(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["study", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for word in ("--cluster ADDRESS", "--gpus-per-run N", "Keys of the study's file:\n  variants", "\n  logarithmic\n"):
        assert word in out
