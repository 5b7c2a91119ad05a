"""Soups of checkpoints from the command line."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_reg import CheckpointSoup
from lightning_reg.cli import main
from tests.cli.helpers import MLP_CONFIG, assert_answered, run

CONFIG = ["--config", MLP_CONFIG]
TOO_LONG = "y" * 300  # for the name of a file


@pytest.fixture
def epochs(capsys):
    """Checkpoints of every epoch of one training."""
    assert run("fit", "--checkpoint.filename", "{epoch}", "--checkpoint.save_top_k", "-1") == 0
    capsys.readouterr()
    return [f"runs/digits_mlp/version_0/checkpoints/epoch={epoch}.ckpt" for epoch in range(2)]


def test_a_soup_is_made_saved_and_tested(epochs, capsys):
    assert main(["soup", *epochs, "--uniform", *CONFIG]) == 0
    printed = capsys.readouterr().out
    assert "test --config" in printed
    assert "--ckpt_path soup.ckpt" in printed
    one, other, soup = (torch.load(path, weights_only=True)["state_dict"] for path in (*epochs, "soup.ckpt"))
    weights = [name for name in soup if name.endswith("weight")]
    assert not one[weights[0]].equal(other[weights[0]])
    for name in weights:
        torch.testing.assert_close(soup[name], (one[name] + other[name]) / 2)
    assert main(["test", *CONFIG, "--ckpt_path", "soup.ckpt"]) == 0


def test_a_greedy_soup_is_no_worse_than_the_best(epochs, capsys):
    words = [*CONFIG, "--checkpoint.monitor", "val/accuracy", "--checkpoint.mode", "max"]
    assert main(["soup", *epochs, "--output", "greedy.ckpt", *words]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    scores = {line[0]: float(line[1]) for line in lines if line and line[0] in (*epochs, "soup")}
    assert len(scores) == 3
    assert scores["soup"] >= max(scores[path] for path in epochs)
    assert Path("greedy.ckpt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["a.ckpt", "b.ckpt", "--config", MLP_CONFIG, "--output", "soup"],
            "output must be a new file that ends in .ckpt",
        ),
        (
            ["a.ckpt", "b.ckpt", "--config", MLP_CONFIG],
            "ckpt_path must be best, last or a file that exists, but is 'a.ckpt'",
        ),
        (
            ["a.ckpt", "b.ckpt", "--config", MLP_CONFIG, "--output", f"{TOO_LONG}.ckpt"],
            "output must be a file that can be written, but is 'yyyyy",
        ),
        (
            ["a.ckpt", "b.ckpt", "--config", MLP_CONFIG, "--output", f"{TOO_LONG}/soup.ckpt"],
            "output must be a new file that ends in .ckpt, in a folder that exists",
        ),
        ([TOO_LONG, "b.ckpt", "--config", MLP_CONFIG], "ckpt_path must be best, last or a file that exists"),
        (CONFIG, "soup: at least two checkpoints must be named, before any option, but there are 0"),
    ],
)
def test_bad_words_are_refused(words, message, capsys):
    assert main(["soup", *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("soup.ckpt").exists()


def test_soup_among_callbacks_says_what_it_is():
    with pytest.raises(TypeError, match=r"no callback, and must be used after training, as CheckpointSoup\(\).cook"):
        Trainer(callbacks=[CheckpointSoup()], logger=False, enable_checkpointing=False)
    assert not hasattr(CheckpointSoup(), "anything")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--trainer.callbacks+=CheckpointSoup",
            "must be a Callback, but CheckpointSoup is another class: Averages the weights of .* From the command line "
            "it is lightning-reg soup CHECKPOINT",
        ),
        (
            "--trainer.callbacks+=lightning_reg.nn.DropBlock2d",
            "must be a Callback, but DropBlock2d is another class: .*; did you mean InsertDropBlock",
        ),
        ("--trainer.callbacks+=ImageData", "must be a Callback, but ImageData is another class: Labeled images"),
    ],
)
def test_class_of_another_kind_is_told_by_what_it_does(options, message, capsys):
    assert_answered(capsys, message, *options.split())
