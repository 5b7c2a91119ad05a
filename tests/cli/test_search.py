"""``lightning-reg search``: from a file to a configuration that is ready to train."""

import json
import re
from pathlib import Path

import pytest
import yaml

from lightning_reg.cli import main
from lightning_reg.cli.search import parsed
from lightning_reg.cli.search_job import set_split
from lightning_reg.cli.unattended import trial
from lightning_reg.cli.unattended.fitting import all_settings
from lightning_reg.cli.unattended.rehearsal import Rehearsed
from lightning_reg.cli.unattended.trial import for_trials
from lightning_reg.search.spaces.space_file import read_space, space_of
from lightning_reg.search.trials.first_trials import first_trials
from lightning_reg.studies.executor import InProcessExecutor
from tests.conftest import REPOSITORY

SPACE = {
    "title": "Small",
    "switches": {
        "dropout": {"set": {"model.drop_prob": {"linear": [0.1, 0.5]}}, "without": {"model.drop_prob": 0.0}},
        "smoothing": {"set": {"model.label_smoothing": 0.1}, "without": {"model.label_smoothing": 0.0}},
        "l1": {"callback": "L1Penalty"},
        "l2": {"callback": "L2Penalty"},
        "confidence": {"callback": "ConfidencePenalty"},
        "head": {"set": {"model.head_drop_prob": 0.1}, "optional": True},
    },
}
SEARCH = {
    "title": "Example",
    "base": [
        str(REPOSITORY / "configs" / "digits_mlp.yaml"),
        {
            "trainer.max_epochs": 2,
            "data.train_size": 100,
            "model.hidden_sizes": [16],
            "trainer.log_every_n_steps": 1,
            "trainer.callbacks": [
                {"class_path": "RegularizationAudit"},
                {"class_path": "L1Penalty", "init_args": {"weight": 0.1}},
            ],
        },
    ],
    "space": SPACE,
    "metric": "val/loss",
    "trials": 8,
    "folds": 1,
    "confirm": 1,
    "quick": {"trials": 3, "confirm": 0},
}
FOLDER = Path("runs/search/example")


@pytest.fixture
def here(monkeypatch):
    """Trials are done in this very process: what a worker of its own would import takes seconds."""
    monkeypatch.setattr("lightning_reg.cli.options.LocalExecutor", lambda _: InProcessExecutor())


@pytest.fixture
def trained(monkeypatch, here):
    """The settings of each trial that was trained, in order."""
    seen, fit = [], trial.fit_trial

    def noted(run, folder):
        seen.append((run.variant, run.arguments["settings"]))
        return fit(run, folder)

    monkeypatch.setattr(trial, "fit_trial", noted)
    return seen


def write(name="example", **changes):
    path = Path(f"{name}.yaml")
    path.write_text(yaml.safe_dump({**SEARCH, **changes}, sort_keys=False))
    return str(path)


def test_a_search_ends_with_a_configuration_that_trains(trained, capsys):
    assert main(["search", write()]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Example\n8 trials, each on one validation split, judged by val/loss\n")
    assert "note: head is left out: the base has no model.head_drop_prob\n" in out
    assert "note: l2 is left out: L2Penalty under AdamW" in out
    assert "note: smoothing and confidence are never tried together: Label smoothing 0.1 with Confidence" in out
    assert "note: the base has L1Penalty, which l1 adds: in trials l1 decides" in out
    assert "note: the base sets model.drop_prob to 0.3: in trials dropout decides" in out
    assert re.search(r"^Best on validation: .*, \d\.\d+\.$", out, re.MULTILINE)
    assert "best" in err
    content = json.loads((FOLDER / "search.json").read_text())
    tried = content["trials"]
    assert [trial["kind"] for trial in tried[:2]] == ["plain", "base"]
    assert not any({"smoothing", "confidence"} <= set(trial["cocktail"] or {}) for trial in tried)
    by_name = dict(trained)
    assert by_name["plain"]["trainer"]["callbacks"] == []  # nor what only watches
    assert by_name["plain"]["model"]["init_args"]["drop_prob"] == 0.0
    assert [entry["class_path"] for entry in by_name["base"]["trainer"]["callbacks"]] == ["lightning_reg.L1Penalty"]
    assert by_name["base"]["model"]["init_args"]["drop_prob"] == 0.3
    assert not list(FOLDER.rglob("*.ckpt"))
    best = content["best"]
    assert best["value"] == min(trial["value"] for trial in tried)
    assert (FOLDER / "report.html").read_text().count("<svg") >= 2
    if best["cocktail"]:
        study = yaml.safe_load((FOLDER / "confirm.yaml").read_text())
        assert set(content["confirmation"]["variants"]) == set(study["variants"])
        assert study["metric"] == "test/loss"
        assert study["seeds"] == content["confirmation"]["seeds"] == [1000]
        assert (FOLDER / "confirmation" / "report.html").exists()

    # What it hands over trains, and comes to what the trial measured.
    settings = yaml.safe_load((FOLDER / "best.yaml").read_text())
    assert "RegularizationAudit" in str(settings)  # it stays
    assert main(["fit", "--config", str(FOLDER / "best.yaml"), "--trainer.enable_progress_bar", "false"]) == 0
    shown = re.search(r"^loss +\d\S+ +(\S+)", capsys.readouterr().out, re.MULTILINE)
    assert float(shown[1]) == pytest.approx(best["value"], abs=1e-4)
    compile((FOLDER / "best.py").read_text(), "best.py", "exec")


def test_a_search_that_is_interrupted_goes_on(trained, monkeypatch, capsys):
    fit = trial.fit_trial

    def interrupted(run, folder):
        if run.variant == "base":
            monkeypatch.setattr(trial, "fit_trial", fit)
            raise KeyboardInterrupt
        return fit(run, folder)

    monkeypatch.setattr(trial, "fit_trial", interrupted)
    words = ["search", write(), "--quick", "--output", "mine"]
    assert main(words) == 130
    assert "To go on:\n  lightning-reg search example.yaml --quick --output mine" in capsys.readouterr().err
    assert main(words) == 0
    assert [name for name, _ in trained] == ["plain", "base", "trial 2"]
    capsys.readouterr()
    assert main(words) == 0  # nothing is left to do
    assert len(trained) == 3
    assert "Best on validation" in capsys.readouterr().out


def test_the_test_part_is_not_looked_at(here, monkeypatch):
    def refuse(self):
        raise AssertionError("a trial looks at the test part")

    monkeypatch.setattr("lightning_reg.data.in_memory.InMemoryData.test_dataloader", refuse)
    assert main(["search", write(), "--quick", "--trainer.max_epochs", "1"]) == 0


def test_splits_leave_the_test_part_alone():
    image = {"data": {"init_args": {"folds": None, "fold": 0, "val_size": 0.1, "seed": 0, "root": "data"}}}
    set_split(image, 2, 5, 10)
    assert image["data"]["init_args"] == {"folds": 5, "fold": 2, "val_size": 0.1, "seed": 12, "root": "data"}
    assert image["seed_everything"] == 12
    table = {"data": {"init_args": {"folds": None, "fold": 0, "val_size": 0.1, "seed": 0, "test_size": 0.2}}}
    set_split(table, 2, 5, 0)
    assert table["data"]["init_args"] == {"folds": None, "fold": 0, "val_size": 0.1, "seed": 2, "test_size": 0.2}
    foreign = {"data": {"init_args": {"path": "x"}}}
    set_split(foreign, 1, 5, 0)
    assert foreign == {"data": {"init_args": {"path": "x"}}, "seed_everything": 1}


def test_options_of_fit_are_pieces_of_the_base():
    words = ["digits", "--trainer.max_steps", "-1", "--quick", "--trainer.callbacks+=L1Penalty", "-c", "a.yaml"]
    options, pieces = parsed(words)
    assert (options.file, options.quick) == ("digits", True)
    assert pieces == [{"trainer.max_steps": "-1"}, {"trainer.callbacks+": "L1Penalty"}, Path("a.yaml")]


def test_callbacks_of_the_base_count_once_in_every_pair():
    """Two of Lightning's averages would be a contradiction; the base has one."""
    average = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging"}
    base = for_trials(all_settings(["--config", "digits_mlp", "--trainer.callbacks", json.dumps([average])]))
    scheduled = {"class_path": "DropoutSchedule", "init_args": {"schedule": {"class_path": "StrengthSchedule"}}}
    space = space_of(
        "x",
        {
            "switches": {
                "noise": {"callback": "GradientNoise"},
                "dropout": {"set": {"model.drop_prob": 0.1}, "callbacks": [scheduled]},
            }
        },
    )
    found = Rehearsed(space, base).rehearse()
    assert found.space.conflicts == frozenset()
    assert found.notes == ()


def test_first_trials_take_a_third_at_the_most():
    space = read_space("tabular")
    names = [trial.name for trial in first_trials(space, 30, has_base=True)]
    assert names[:4] == ["plain", "base", "dropout with weight decay", "dropout alone"]
    assert len(names) == 10
    assert [trial.name for trial in first_trials(space, 3, has_base=True)] == ["plain", "base"]
    assert len(first_trials(space, 1000, has_base=False)) == 2 + len(space.switches)


BAD = [
    (
        {"metric": "val/acc"},
        [],
        "metric must be one of val/loss, val/accuracy, val/balanced_accuracy, but is 'val/acc'",
    ),
    ({"metric": None}, [], "metric is missing"),
    ({"spce": "tabular"}, [], "has 'spce', which is none of .*; did you mean 'space'"),
    ({"space": "tabluar"}, [], "is 'tabluar'; did you mean 'tabular'"),
    ({"exclude": ["drpout"]}, [], "exclude must be one of .*, but is 'drpout'; did you mean 'dropout'"),
    ({"only": ["l1"], "exclude": ["l1"]}, [], "must have at least one switch, but all are left out"),
    ({"space": {"switches": {}}}, [], "must have at least one switch, but is empty"),
    (
        {"space": {"switches": {"x": {"set": {"model.drop_prop": {"linear": [0, 0.5]}}}}}},
        [],
        "switch 'x' sets model.drop_prop, which the base hasn't; did you mean 'model.drop_prob'",
    ),
    (
        {"space": {"switches": {"x": {"set": {"model.drop_prob": {"linear": [0.5, 0.1]}}}}}},
        [],
        "must be the lower bound and the higher one, but is .0.5, 0.1.",
    ),
    (
        {"space": {"switches": {"x": {"set": {"model.drop_prob": {"linear": [2, 3]}}}}}},
        [],
        r"switch 'x': drop_prob must be in \[0, 1\], but is 2.5",
    ),
    ({"base": "nowhere.yaml"}, [], "base must name a configuration that exists, but 'nowhere.yaml' doesn't"),
    ({"base": [SEARCH["base"][0], {"model.hiden_sizes": [3]}]}, [], "base: .*hiden_sizes"),
    ({"prune": True, "folds": 3}, [], "prune needs at least 4 folds, but folds is 3"),
    ({"better": "more"}, [], "better must be one of lower, higher, but is 'more'"),
    ({}, ["--trials", "1"], "trials must be a whole number of at least 3, but is 1"),
    ({}, ["--max-step-time", "0"], r"max_step_time must be in \(0, ∞\), but is 0.0"),
    ({}, ["--jobs", "0"], "jobs must be a whole number of at least 1, but is 0"),
    ({}, ["--jobs", "many"], "argument --jobs: invalid int value: 'many'; see lightning-reg search --help"),
    ({}, ["digits"], "search: unrecognized argument digits"),
    ({}, ["--trails", "5"], "unrecognized argument --trails; did you mean '--trials'"),
    ({}, ["--storage", "postgresql://me:secret@127.0.0.1:1/x"], r"storage must be a database .*me:\*\*\*@"),
    ({"space": "y" * 300}, [], "space must be one of attach, .*, or a file, but is 'yyyyy"),
    ({}, ["--output", "y" * 300], "output must be a folder that can be written, but is 'yyyyy.* too long"),
    ({}, ["--output", "example.yaml"], "output must be a folder, but 'example.yaml' is a file"),
]


@pytest.mark.parametrize(("changes", "options", "message"), BAD)
def test_what_cannot_be_used_is_told_in_one_sentence_before_the_first_trial(
    here, monkeypatch, capsys, changes, options, message
):
    monkeypatch.setattr(trial, "fit_trial", None)
    path = write(**changes)
    assert main(["search", path, *options]) == 2
    out, err = capsys.readouterr()
    assert re.search(message, err), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "secret" not in err + out
    assert not FOLDER.exists()


def test_a_folder_of_another_search_is_refused(here, capsys):
    assert main(["search", write(), "--quick"]) == 0
    assert main(["search", write(metric="val/accuracy"), "--quick"]) == 2
    assert "'runs/search/example-quick' is of one with another metric; give another --output" in capsys.readouterr().err
    assert main(["search", write("other"), "--quick", "--output", "runs/search/example-quick"]) == 2
    assert "must be a folder of 'other', but 'runs/search/example-quick' is of 'example'" in capsys.readouterr().err


FOREIGN = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule

class TheirNet(LightningModule):
    def __init__(self, width: int = 8):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))
    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
    def validation_step(self, batch, batch_idx):
        self.log("val_error", (self.layers(batch[0]).argmax(1) != batch[1]).float().mean())
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class TheirRows(LightningDataModule):
    def train_dataloader(self):
        inputs = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        data = torch.utils.data.TensorDataset(inputs, (inputs.sum(1) > 0).long())
        return torch.utils.data.DataLoader(data, batch_size=16)
    val_dataloader = train_dataloader
"""


def test_callbacks_are_found_for_a_module_that_no_one_here_wrote(here, tmp_path, monkeypatch, capsys):
    (tmp_path / "their_project.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    path = Path("attach.yaml")
    switches = read_space("attach").switches
    trials = 3 * (1 + len(switches))  # so many that the plain run and each technique alone are a third
    settings = {"space": "attach", "metric": "val_error", "folds": 1, "trials": trials, "confirm": 0}
    path.write_text(yaml.safe_dump(settings))
    base = ["--model", "their_project.TheirNet", "--data=their_project.TheirRows", "--trainer.max_epochs", "1"]
    assert main(["search", str(path)]) == 2
    assert "error: base is missing" in capsys.readouterr().err
    assert main(["search", str(path), *base, "--trainer.logger", "false"]) == 0
    assert "the epoch is selected by val_error: the module doesn't log val/loss" in capsys.readouterr().out
    selection = yaml.safe_load(Path("runs/search/attach/best.yaml").read_text())["checkpoint"]
    assert selection["monitor"] == "val_error"
    content = json.loads(Path("runs/search/attach/search.json").read_text())
    alone = [trial for trial in content["trials"] if trial["kind"] == "alone"]
    assert len(alone) == len(switches)
    assert [trial["message"] for trial in alone if trial["value"] is None] == []  # all of them attach
