"""The search from Python, in a project that knows nothing of the command line."""

import json
import os

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.search import search
from lightning_reg.search.python_run import seeded
from lightning_reg.settings import SettingError

SPACE = {
    "switches": {
        "l1": {"callback": "L1Penalty"},
        "noise": {"callback": "GradientNoise"},
        "clipping": {"callback": "GradientClipping"},
        "l2": {"callback": "L2Penalty"},
    }
}


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return functional.cross_entropy(self.layers(inputs), targets)

    def validation_step(self, batch, batch_idx):
        inputs, targets = batch
        self.log("val_loss", functional.cross_entropy(self.layers(inputs), targets))

    def test_step(self, batch, batch_idx):
        inputs, targets = batch
        self.log("test_loss", functional.cross_entropy(self.layers(inputs), targets))

    def test_dataloader(self):
        return loaders(9)[1]

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def loaders(seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(32, 4, generator=generator)
    data = TensorDataset(inputs, (inputs.sum(1) > 0).long())
    return DataLoader(data, batch_size=16), DataLoader(data, batch_size=32)


def make(callbacks, trial):
    trainer = Trainer(
        max_epochs=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    return trainer, Net(), *loaders(trial.seed)


def go(folder, do=make, **settings):
    given = {"space": SPACE, "metric": "val_loss", "trials": 6, "confirm": 0, **settings}
    return search(do, output=folder, quiet=True, **given)


def test_a_search_finds_callbacks_and_confirms_them(tmp_path):
    state = torch.random.get_rng_state()
    found = go(tmp_path / "s", confirm=2, test_metric="test_loss", splits=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    tried = found.outcome.tried
    assert [(trial.kind, trial.name) for trial in tried[:2]] == [("plain", "plain"), ("alone", "l1 alone")]
    assert {type(callback).__name__ for callback in found.callbacks()} <= {
        "L1Penalty",
        "GradientNoise",
        "GradientClipping",
    }
    assert all(len(trial.values) == 2 for trial in tried)
    assert any("l2 is left out: L2Penalty under AdamW" in note for note in found.outcome.notes)
    content = json.loads((tmp_path / "s" / "search.json").read_text())
    assert content["metric"] == "val_loss"
    assert content["better"] == "lower"
    values = [trial["value"] for trial in content["trials"]]
    assert content["best"]["value"] == min(values)
    if found.cocktail:
        assert set(content["confirmation"]["variants"]) >= {"cocktail", "plain"}
        assert content["confirmation"]["seeds"] == [1000, 1001]
    assert "<svg" in (tmp_path / "s" / "report.html").read_text()
    compile((tmp_path / "s" / "best.py").read_text(), "best.py", "exec")


def test_a_run_that_fails_leaves_seeds_and_streams_alone(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    state = torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(3):
        torch.rand(1) / (1 // 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert "PL_GLOBAL_SEED" not in os.environ


def test_a_search_goes_on_where_it_was(tmp_path):
    whole = go(tmp_path / "whole")
    count = 0

    def interrupted(callbacks, trial):
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return make(callbacks, trial)

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "parts", interrupted)
    parts = go(tmp_path / "parts")
    assert [trial.parameters for trial in parts.outcome.tried] == [trial.parameters for trial in whole.outcome.tried]
    assert [trial.value for trial in parts.outcome.tried] == [trial.value for trial in whole.outcome.tried]


def without_callbacks(callbacks, trial):
    return make([], trial)


def nothing(callbacks, trial):
    return None


ONE = Net()


def the_same_module(callbacks, trial):
    return make(callbacks, trial)[0], ONE, loaders(0)


def swapped(callbacks, trial):
    trainer, module, *data = make(callbacks, trial)
    return module, trainer, *data


def three_loaders(callbacks, trial):
    return *make(callbacks, trial)[:2], loaders(0) + loaders(1)[:1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "val_los"}, "metric must be one of .*, but is 'val_los'; did you mean 'val_loss'"),
        ({"space": "tabular"}, "space must be of callbacks alone where make builds the run, but 'dropout' sets"),
        ({"space": "atach"}, "is 'atach'; did you mean 'attach'"),
        ({"exclude": ["l3"]}, "exclude must be one of l1, noise, clipping, l2, but is 'l3'"),
        ({"exclude": ["l1", "noise", "clipping", "l2"]}, "must have at least one switch, but all are left out"),
        ({"trials": 0}, "trials must be a whole number of at least 3"),
        ({"splits": 10**12}, r"splits must be in \[1, 10000\], but is 1000000000000"),
        ({"confirm": 10**12}, r"confirm must be in \[0, 10000\], but is 1000000000000"),
        ({"do": three_loaders}, "make must return a data module, or two loaders, but returned 3 of them"),
        ({"do": without_callbacks}, "make must give the Trainer the callbacks that it is given"),
        ({"do": the_same_module}, "make must return a new module at each call"),
        ({"do": swapped}, r"make must return .trainer, module, data., but returned \(.*, Trainer"),
        ({"metric": 5}, "metric must be text, but is 5"),
        ({"exclude": 5}, "exclude must be a list, but is 5"),
        ({"space": None}, "space must be text or a path, but is None"),
        ({"storage": 5}, "storage must be text, but is 5"),
        ({"do": 5}, "make must be a function of callbacks and a trial, but is 5"),
        ({"do": nothing}, "make must return .trainer, module, data., but returned NoneType"),
        ({"storage": "postgresql://me:secret@127.0.0.1:1/x"}, r"storage must be a database .*me:\*\*\*@"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_sentence(tmp_path, settings, message):
    with pytest.raises(SettingError, match=message):
        go(tmp_path / "s", **settings)


def test_a_folder_of_another_search_is_refused(tmp_path):
    go(tmp_path / "s", trials=3)
    with pytest.raises(SettingError, match="is of one with another metric and another seed; give another --output"):
        go(tmp_path / "s", trials=3, seed=1, better="higher")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(SettingError, match=r"must be a new folder or a search's, but .* holds something else"):
        go(tmp_path / "full")
