"""Every configuration file runs for a few steps by the command in its first line, on data that is shipped or made."""

import shlex
from pathlib import Path

import pytest
import torch
import yaml

from lightning_reg.cli import main
from lightning_reg.cli.search import parsed
from lightning_reg.cli.unattended.fitting import all_settings
from lightning_reg.cli.unattended.plan import command_of as command_of_pieces
from lightning_reg.search.definition import read_search
from lightning_reg.shipped import find_config, shipped_configs
from tests.conftest import REPOSITORY
from tests.data.test_sources import write_mnist

CONFIGS = sorted(path for folder in (".", "textbook") for path in (REPOSITORY / "configs" / folder).glob("*.yaml"))
OVERLAYS = sorted((REPOSITORY / "configs" / "techniques").glob("*.yaml"))
SHORT = [
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.limit_train_batches=2",
    "--trainer.enable_progress_bar=false",
]


@pytest.fixture
def stand_in(tmp_path, image_folder):
    """Options that put made data in the place of what would be downloaded."""

    def options(path):
        name = path.stem.rpartition("_")[0]
        if name == "mnist":
            write_mnist(tmp_path / "data")
            return ["--data.val_size=10"]
        if name == "image_folder_labels":
            root = image_folder(("all",), classes=3, size=32)
            files = sorted(file.relative_to(root).as_posix() for file in root.rglob("*.png"))
            rows = [f"{file},{number % 2},{number // 2 % 2}" for number, file in enumerate(files)]
            (tmp_path / "labels.csv").write_text("\n".join(["file,cat,dog", *rows]))
            return [f"--data.root={root}", "--data.val_size=0.25"]
        if name in ("cifar10", "image_folder"):
            root = image_folder(("train", "test"), classes=3, size=32)
            return ["--data.dataset=image_folder", f"--data.root={root}", "--data.val_size=0.25"]
        return []

    return options


def command_of(path):
    """The words behind ``lightning-reg`` in a configuration's first line."""
    program, *words = shlex.split(path.read_text().splitlines()[0].removeprefix("# "))
    assert program == "lightning-reg"
    return words


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_runs(path, stand_in):
    assert main([*command_of(path), *SHORT, *stand_in(path)]) == 0
    assert_checkpoints_are_data()


def assert_checkpoints_are_data():
    """What models, data modules and callbacks keep is read without running anything of it."""
    checkpoints = list(Path("runs").rglob("*.ckpt"))
    assert checkpoints
    for checkpoint in checkpoints:
        assert torch.load(checkpoint, weights_only=True)["callbacks"]


def bases_and_overlays():
    """What is shown on the MLP has to work on the CNN, too; what needs images or blocks, on the base it names."""
    for overlay in OVERLAYS:
        base = command_of(overlay)[2]
        for name in [base, "digits_cnn"] if base == "digits_mlp" else [base]:
            yield pytest.param(name, overlay, id=f"{name}-{overlay.stem}")


LONGER = {"snapshot_ensemble": ["--trainer.limit_train_batches=14"]}  # cycles need some steps


@pytest.mark.filterwarnings("ignore:.* has no effect. .* but training is planned to end")  # so short a run
@pytest.mark.parametrize(("base", "overlay"), list(bases_and_overlays()))
def test_technique_is_appended(base, overlay):
    longer = LONGER.get(overlay.stem, [])
    assert main(["fit", "--config", base, "--config", str(overlay), *SHORT, *longer]) == 0
    assert_checkpoints_are_data()


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_technique_changes_the_run_that_its_command_names(overlay, capsys):
    words = command_of(overlay)
    assert words[-2:] == ["--config", f"techniques/{overlay.stem}"]
    printed = []
    for command in (words[:-2], words):
        with pytest.raises(SystemExit):
            main([*command, "--print_config"])
        printed.append(capsys.readouterr().out)
    assert printed[0] != printed[1]


@pytest.mark.parametrize(("name", "path"), shipped_configs().items(), ids=shipped_configs())
def test_configuration_opens_with_its_command_and_what_it_is(name, path):
    words = command_of(path)
    kind = {"studies": "study", "search": "search"}.get(path.parent.name, "fit")
    assert words[0] == kind
    assert (name if kind == "fit" else path.stem) in words
    if kind != "study":  # those have a title
        description = path.read_text().splitlines()[1]
        assert description.startswith("# ")
        assert description.endswith(".")


THEIRS = """
from lightning.pytorch import LightningDataModule, LightningModule
class Module(LightningModule): ...
class Data(LightningDataModule): ...
"""
SEARCHES = sorted((REPOSITORY / "configs" / "search").glob("*.yaml"))


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_the_command_of_a_search_parses(path, tmp_path, monkeypatch):
    (tmp_path / "my.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    options, pieces = parsed(command_of(path)[1:])
    definition = read_search(find_config("search file", options.file, within="search"))
    assert all_settings(command_of_pieces((*definition.base, *pieces)))["model"]["class_path"]


def test_every_callback_has_an_overlay():
    from lightning.pytorch import Callback

    from lightning_reg import callbacks

    public = {name for name in callbacks.__all__ if issubclass(getattr(callbacks, name), Callback)}
    used = set()
    for path in OVERLAYS:
        config = yaml.safe_load(path.read_text())
        used |= {entry["class_path"] for entry in config.get("trainer", {}).get("callbacks+", [])}
    assert used == public
