"""What every technique must pass: equal to the textbook's loop, resumable, idle at strength zero, gone afterwards."""

import copy
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_reg import callbacks
from tests.conformance.problem import (
    BATCH_SIZE,
    EPOCHS,
    Setting,
    SomebodysModule,
    loader,
    network,
    resumable_loader,
    samples,
    textbook_loop,
)
from tests.conformance.techniques import TECHNIQUES

MATRIX = [
    Setting(precision, accumulate, clip, compiled)
    for precision, accumulate, clip, compiled in product(
        ["32-true", "bf16-mixed", "16-mixed"], [1, 4], [None, "norm", "value"], [False, True]
    )
]


def weights_of(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def fit(setting, attached, *, ckpt_path=None, train=loader, **settings):
    module = SomebodysModule(setting.compiled)
    trainer = setting.trainer(attached, **settings)
    trainer.fit(module, train(), loader(), ckpt_path=ckpt_path)
    return module, trainer


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def test_every_technique_is_here():
    assert set(TECHNIQUES) == set(callbacks.__all__)


@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("setting", MATRIX, ids=str)
def test_equals_the_textbooks_loop(name, setting):
    technique = TECHNIQUES[name]
    by_hand = textbook_loop(setting, technique.penalty)
    expected = by_hand.weights[technique.final_epoch(by_hand.val_losses)]
    module, _ = fit(setting, [technique.attach()])
    tolerance = setting.tolerance(weights_of(network()), expected)
    difference = max((a - b).abs().max().item() for a, b in zip(weights_of(module), expected, strict=True))
    assert difference <= tolerance


@pytest.mark.slow
@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_equals_the_textbooks_loop_in_two_processes(name, accumulate, tmp_path):
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, str(script), name, str(accumulate), str(tmp_path / "weights.pt")]
    subprocess.run(command, check=True, timeout=120, cwd=Path(__file__).parents[2])
    setting, technique = Setting(accumulate=accumulate), TECHNIQUES[name]
    by_hand = textbook_loop(setting, technique.penalty)
    expected = by_hand.weights[technique.final_epoch(by_hand.val_losses)]
    difference = max(
        (a - b).abs().max().item() for a, b in zip(torch.load(tmp_path / "weights.pt"), expected, strict=True)
    )
    assert difference <= setting.tolerance(weights_of(network()), expected)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_idle_is_the_identity_to_the_bit(name):
    with_it, _ = fit(Setting(), [TECHNIQUES[name].idle()])
    without, _ = fit(Setting(), [])
    assert all(torch.equal(a, b) for a, b in zip(weights_of(with_it), weights_of(without), strict=True))


class Interrupt(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise InterruptedError


@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_resumed_is_uninterrupted_to_the_bit(name, accumulate, tmp_path):
    """From an epoch's end, and from within one at the end of an accumulation window, with a loader that resumes."""
    setting, technique = Setting(accumulate=accumulate), TECHNIQUES[name]

    def run(**settings):
        saves = ModelCheckpoint(
            tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, enable_version_counter=False, save_last=False
        )
        at_best = ModelCheckpoint(tmp_path, "best", monitor="val_loss", enable_version_counter=False)
        attached = [technique.attach(), saves, at_best]
        module, trainer = fit(setting, attached, train=resumable_loader, enable_checkpointing=True, **settings)
        return weights_of(module), trainer.global_step

    whole, steps = run()
    within, between = steps // EPOCHS + 1, steps // EPOCHS
    for step in (between, within):
        (tmp_path / "start.ckpt").write_bytes((tmp_path / f"step={step}.ckpt").read_bytes())
        resumed, _ = run(ckpt_path=tmp_path / "start.ckpt")
        assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))


@pytest.mark.parametrize("name", TECHNIQUES)
def test_two_instances_live_side_by_side(name):
    """The second is idle: it leaves the first what it does, in training and in checkpoints."""
    technique = TECHNIQUES[name]
    one, _ = fit(Setting(), [technique.attach()])
    two, _ = fit(Setting(), [technique.attach(), technique.idle()])
    assert all(torch.equal(a, b) for a, b in zip(weights_of(one), weights_of(two), strict=True))


def traces(module):
    """Everything a callback could leave on a module."""
    return {
        name: (type(part), sorted(vars(part)), len(part._forward_hooks), len(part._backward_hooks), part.training)
        for name, part in module.named_modules()
    } | {name: parameter._backward_hooks for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("how", ["finished", "failed"])
def test_nothing_is_left_on_the_module(name, how):
    technique = TECHNIQUES[name]
    module, untouched = SomebodysModule(), SomebodysModule()
    others = [Interrupt(1)] if how == "failed" else []
    plain = Setting().trainer(copy.deepcopy(others))
    trainer = Setting().trainer([technique.attach(), *others])
    for each, part in ((plain, untouched), (trainer, module)):
        if how == "failed":
            with pytest.raises(InterruptedError):
                each.fit(part, loader(), loader())
        else:
            each.fit(part, loader(), loader())
    assert traces(module) == traces(untouched)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_global_random_stream_is_left_alone(name):
    states = []
    for attached in ([], [TECHNIQUES[name].attach()]):
        torch.manual_seed(7)
        fit(Setting(), attached)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_logged_loss_stays_the_users(name):
    """In the first step; in later ones the weights differ, as they should."""
    _, trainer = fit(Setting(), [TECHNIQUES[name].attach()], max_epochs=1, limit_train_batches=1)
    inputs, labels = (part[:BATCH_SIZE] for part in samples().tensors)
    expected = nn.functional.cross_entropy(network()(inputs), labels)
    torch.testing.assert_close(trainer.callback_metrics["train_loss"], expected)
