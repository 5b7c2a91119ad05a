"""Every configuration file runs for a few steps, on data that is shipped or made here."""

from pathlib import Path

import pytest
import torch
import yaml

from lightning_reg.cli import main
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
            (tmp_path / "labels.csv").write_text("\n".join(["file,first,second", *rows]))
            return [f"--data.root={root}", f"--data.labels={tmp_path / 'labels.csv'}", "--data.val_size=0.25"]
        if name in ("cifar10", "image_folder"):
            root = image_folder(("train", "test"), classes=3, size=32)
            return ["--data.dataset=image_folder", f"--data.root={root}", "--data.val_size=0.25"]
        return []

    return options


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_runs(path, stand_in):
    assert main(["fit", "--config", str(path), *SHORT, *stand_in(path)]) == 0
    assert_checkpoints_are_data()


def assert_checkpoints_are_data():
    """What models, data modules and callbacks keep is read without running anything of it."""
    checkpoints = list(Path("runs").rglob("*.ckpt"))
    assert checkpoints
    for checkpoint in checkpoints:
        assert torch.load(checkpoint, weights_only=True)["callbacks"]


def base_of(overlay):
    words = overlay.read_text().splitlines()[0].split()
    return REPOSITORY / words[words.index("--config") + 1]


def bases_and_overlays():
    """What is shown on the MLP has to work on the CNN, too; what needs images or blocks, on the base it names."""
    for overlay in OVERLAYS:
        bases = [base_of(overlay)]
        if bases[0].stem == "digits_mlp":
            bases.append(bases[0].with_stem("digits_cnn"))
        for base in bases:
            yield pytest.param(base, overlay, id=f"{base.stem}-{overlay.stem}")


@pytest.mark.parametrize(("base", "overlay"), list(bases_and_overlays()))
def test_technique_is_appended(base, overlay):
    assert main(["fit", "--config", str(base), "--config", str(overlay), *SHORT]) == 0
    assert_checkpoints_are_data()


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_technique_changes_the_run_that_its_command_names(overlay, capsys):
    base = base_of(overlay)
    printed = []
    for configs in ([base], [base, overlay]):
        with pytest.raises(SystemExit):
            main(["fit", *(word for path in configs for word in ("--config", str(path))), "--print_config"])
        printed.append(capsys.readouterr().out)
    assert printed[0] != printed[1]


@pytest.mark.parametrize("path", [*CONFIGS, *OVERLAYS], ids=lambda path: path.stem)
def test_configuration_opens_with_its_command_and_what_it_is(path):
    command, description = path.read_text().splitlines()[:2]
    assert command.startswith("# python train.py fit --config configs/")
    assert path.relative_to(REPOSITORY).as_posix() in command
    assert description.startswith("# ")
    assert description.endswith(".")


def test_every_callback_has_an_overlay():
    from lightning.pytorch import Callback

    from lightning_reg import callbacks

    public = {name for name in callbacks.__all__ if issubclass(getattr(callbacks, name), Callback)}
    used = set()
    for path in OVERLAYS:
        config = yaml.safe_load(path.read_text())
        used |= {entry["class_path"] for entry in config.get("trainer", {}).get("callbacks+", [])}
    assert used == public
