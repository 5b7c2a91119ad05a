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


def fit(setting, attached, *, ckpt_path=None, module=None, **settings):
    module = module or SomebodysModule(setting.compiled)
    trainer = setting.trainer(attached, **settings)
    trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path)
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
    setting, technique = Setting(accumulate=accumulate), TECHNIQUES[name]

    def run(**settings):
        each_epoch = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, enable_version_counter=False)
        return weights_of(fit(setting, [technique.attach(), each_epoch], enable_checkpointing=True, **settings)[0])

    whole = run()
    for epoch in range(EPOCHS - 1):
        resumed = run(ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))


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
