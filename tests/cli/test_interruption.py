"""Ctrl-C leaves a checkpoint that training goes on from."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

from lightning_reg.cli import main
from tests.cli.helpers import MLP_CONFIG, folders, run


@pytest.fixture
def sigint(monkeypatch):
    """SIGINT as a terminal's user has it, whatever this process was started with; and pytest lives on."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    # Lightning ignores it while it shuts down, for good.
    deaf = SimpleNamespace(signal=lambda *_: None, SIGINT=signal.SIGINT, SIG_IGN=signal.SIG_IGN)
    monkeypatch.setattr("lightning.pytorch.trainer.call.signal", deaf)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, previous)


def test_interruption_before_anything_was_saved_advises_nothing(monkeypatch, capsys, sigint):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_reg.callbacks.BestWeightsEarlyStopping.on_train_start", interrupt)
    with pytest.raises(SystemExit) as exit_status:
        run("fit")
    assert exit_status.value.code == 130
    assert "Interrupted, before there was anything to save." in capsys.readouterr().out


def test_interruption_within_a_step_resumes_to_the_bit(monkeypatch, sigint):
    """SIGINT between the backward pass and the optimizer's step: the worst moment."""
    exact = ["--model.drop_prob", "0", "--trainer.callbacks", "null", "--trainer.max_epochs", "3"]
    asked = []

    def interrupt(self, trainer, pl_module, optimizer):
        if trainer.global_step == 6 and not asked:
            asked.append(sigint())

    assert run("fit", *exact) == 0
    monkeypatch.setattr(Callback, "on_before_optimizer_step", interrupt)
    with pytest.raises(SystemExit):
        run("fit", *exact)
    assert run("fit", *exact, "--ckpt_path", "last") == 0
    whole, resumed = (
        torch.load(f"runs/digits_mlp/version_{index}/checkpoints/last.ckpt", weights_only=True) for index in (0, 1)
    )
    assert whole["global_step"] == resumed["global_step"] == 12
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items())


@pytest.mark.slow
def test_interrupted_run_leaves_a_checkpoint_and_goes_on():
    quiet = ["--trainer.callbacks", "null", "--trainer.enable_progress_bar", "false"]
    # A job in the background is started with SIGINT ignored, and what it starts inherits that.
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import lightning_reg.cli as cli"
    command = [sys.executable, "-c", f"{start}; raise SystemExit(cli.main())", "fit", "--config", MLP_CONFIG, *quiet]
    command += ["--trainer.max_epochs", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    last = Path("runs/digits_mlp/version_0/checkpoints/last.ckpt")
    deadline = time.monotonic() + 90
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert output.splitlines()[-1].endswith(f"--ckpt_path {last}")
    step = torch.load(last, weights_only=True)["global_step"]
    assert step > 0
    epochs = str(torch.load(last, weights_only=True)["epoch"] + 2)
    assert main(["fit", "--config", MLP_CONFIG, "--trainer.max_epochs", epochs, "--ckpt_path", "last", *quiet]) == 0
    assert torch.load(last, weights_only=True)["global_step"] == int(epochs) * 20 > step
    assert folders() == ["version_0"]
