"""What every technique must pass: equal to the textbook's loop, resumable, idle at strength zero, gone afterwards."""

import contextlib
import copy
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from lightning import pytorch
from lightning.pytorch import Callback

from lightning_reg import callbacks
from lightning_reg.settings import SettingError
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
    weights_of,
)
from tests.conformance.resuming import ComparesFirst, RestoresAtOnce
from tests.conformance.technique import as_list
from tests.conformance.techniques import TECHNIQUES
from tests.helpers import of_package

ModelCheckpoint = of_package(pytorch.callbacks.ModelCheckpoint)

MATRIX = [
    Setting(precision, accumulate, clip, compiled)
    for precision, accumulate, clip, compiled in product(
        ["32-true", "bf16-mixed", "16-mixed"], [1, 4], [None, "norm", "value"], [False, True]
    )
    # Clipping isn't compiled: that it comes after compiled code is seen with one kind, in one precision.
    if not (compiled and (clip == "value" or (clip == "norm" and precision != "32-true")))
    # Lightning refuses to clip under a scaler where the optimizer is fused.
] + [Setting("16-mixed", accumulate, None, compiled, True) for accumulate, compiled in product([1, 4], [False, True])]
# That watching changes no weights is seen in three settings as well as in thirty.
WATCHED = [Setting(accumulate=4, clip="norm"), Setting(compiled=True), Setting("16-mixed", fused=True)]

# Of techniques that are idle, because none of the weights that they choose is trained.
IDLE = pytest.mark.filterwarnings("ignore:.* had no effect on what include selects")
# Because training ends before they begin.
LATE = pytest.mark.filterwarnings("ignore:.* has no effect. .* but training is planned to end")


def only_watches(name):
    return all(getattr(callback, "only_watches", False) for callback in TECHNIQUES[name].attached())


CELLS = [
    (name, setting)
    for name in TECHNIQUES
    for setting in (WATCHED if only_watches(name) else MATRIX)
    if not (TECHNIQUES[name].clips and setting.clip)
    if TECHNIQUES[name].compiles or not setting.compiled
]
# A compiled network is as slow to compile in every process; that it is compiled there is seen in one precision. So is
# clipping, of one kind: gradients are the same in all processes when they are clipped.
CELLS_OF_TWO = [
    (name, setting)
    for name, setting in CELLS
    if setting.clip is None or (setting.clip == "norm" and setting.precision == "32-true" and not setting.compiled)
    if not setting.compiled or setting.precision == "32-true"
]


def fit(setting, name, attached, *, ckpt_path=None, train=loader, **settings):
    module = setting.module(prepare=TECHNIQUES[name].prepare)
    trainer = setting.trainer(attached, **settings)
    trainer.fit(module, train(), loader(), ckpt_path=ckpt_path)
    return module, trainer


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def test_every_technique_is_here():
    public = {name for name in callbacks.__all__ if issubclass(getattr(callbacks, name), Callback)}
    assert {name.split()[0] for name in TECHNIQUES} == public


def assert_equals_the_textbooks_loop(name, setting, weights, processes=1):
    textbook = TECHNIQUES[name].textbook
    by_hand = textbook_loop(setting, textbook, processes, TECHNIQUES[name].prepare)
    expected = by_hand.weights[textbook.final_epoch(by_hand.val_losses)]
    difference = max((a - b).abs().max().item() for a, b in zip(weights, expected, strict=True))
    assert difference <= setting.tolerance(by_hand.start, expected)


def cells(fits):
    named = [pytest.param(name, setting, id=f"{name}-{setting}") for name, setting in fits]
    return pytest.mark.parametrize(("name", "setting"), named)


@cells(CELLS)
def test_equals_the_textbooks_loop(name, setting):
    module, _ = fit(setting, name, TECHNIQUES[name].attached())
    assert_equals_the_textbooks_loop(name, setting, weights_of(module))


@pytest.fixture(scope="module")
def fits_in_two_processes(request, tmp_path_factory):
    """What is asked for, one after the other from one process, which is slow to start; once for all xdist's workers."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "two_processes"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            asked = [item for item in request.session.items if "fits_in_two_processes" in item.fixturenames]
            fits = [(item.callspec.params["name"], item.callspec.params["setting"]) for item in asked]
            torch.save({CELLS_OF_TWO.index(cell): cell for cell in fits}, folder / "fits.pt")
            command = [sys.executable, "-m", "tests.conformance.two_processes", str(folder)]
            subprocess.run(command, check=True, timeout=1800, cwd=Path(__file__).parents[2])
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
@cells(CELLS_OF_TWO)
def test_equals_the_textbooks_loop_in_two_processes(name, setting, fits_in_two_processes):
    index = CELLS_OF_TWO.index((name, setting))
    error = fits_in_two_processes / f"{index}.error"
    assert not error.exists(), error.read_text()
    assert_equals_the_textbooks_loop(name, setting, torch.load(fits_in_two_processes / f"{index}.pt"), processes=2)


@pytest.mark.parametrize("name", [name for name, technique in TECHNIQUES.items() if technique.clips])
@pytest.mark.parametrize("clip", ["norm", "value"])
def test_clipping_beside_the_trainers_is_refused(name, clip):
    with pytest.raises(SettingError, match="gradient_clip_val must be left out"):
        fit(Setting(clip=clip), name, TECHNIQUES[name].attached())


@pytest.mark.parametrize("name", [name for name, technique in TECHNIQUES.items() if not technique.compiles])
def test_a_compiled_network_is_refused(name):
    with pytest.raises(SettingError, match="the module must not be compiled"):
        fit(Setting(compiled=True), name, TECHNIQUES[name].attached())


@LATE
@IDLE
@pytest.mark.parametrize("name", TECHNIQUES)
def test_idle_is_the_identity_to_the_bit(name):
    with_it, _ = fit(Setting(), name, as_list(TECHNIQUES[name].idle()))
    without, _ = fit(Setting(), name, [])
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
        first = [ComparesFirst(settings["ckpt_path"])] if settings else []
        attached = [*first, *technique.attached(), saves, at_best]
        module, trainer = fit(setting, name, attached, train=resumable_loader, enable_checkpointing=True, **settings)
        return weights_of(module), trainer.global_step

    whole, steps = run()
    within, between = steps // EPOCHS + 1, steps // EPOCHS
    for step in (between, within):  # aside, because resumed runs write files of the same names
        (tmp_path / f"step={step}.ckpt").rename(tmp_path / f"start={step}.ckpt")
    for step in (between, within):
        resumed, _ = run(ckpt_path=tmp_path / f"start={step}.ckpt")
        assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))


@pytest.mark.parametrize("name", TECHNIQUES)
def test_restored_within_the_same_fit_is_uninterrupted_to_the_bit(name, tmp_path):
    whole, restored = (
        fit(Setting(), name, [*TECHNIQUES[name].attached(), *others])[0]
        for others in ([], [RestoresAtOnce(tmp_path / "now.ckpt")])
    )
    assert all(torch.equal(a, b) for a, b in zip(weights_of(restored), weights_of(whole), strict=True))


@LATE
@IDLE
@pytest.mark.parametrize("name", TECHNIQUES)
def test_two_instances_live_side_by_side(name):
    """The second is idle: it leaves the first what it does, in training and in checkpoints."""
    technique = TECHNIQUES[name]
    one, _ = fit(Setting(), name, technique.attached())
    two, _ = fit(Setting(), name, [*technique.attached(), *as_list((technique.second or technique.idle)())])
    assert all(torch.equal(a, b) for a, b in zip(weights_of(one), weights_of(two), strict=True))


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def traces(module, changed):
    """Everything a callback could leave on a module, but on the parts that it is meant to change for good."""
    parts = {name: part for name, part in module.named_modules() if not name.startswith(changed or "nothing")}
    return {
        name: (type(part), sorted(vars(part)), [len(vars(part)[hooks]) for hooks in HOOKS], part.training)
        for name, part in parts.items()
    } | {
        name: (parameter._backward_hooks, parameter.requires_grad)
        for name, parameter in module.named_parameters()
        if not name.startswith(changed or "nothing")
    }


@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("how", ["finished", "failed"])
def test_nothing_is_left_on_the_module(name, how):
    technique = TECHNIQUES[name]
    module, untouched = (SomebodysModule(prepare=technique.prepare) for _ in range(2))
    others = [Interrupt(1)] if how == "failed" else []
    plain = Setting().trainer(copy.deepcopy(others))
    trainer = Setting().trainer([*technique.attached(), *others])
    for fits, trained in ((plain, untouched), (trainer, module)):
        with pytest.raises(InterruptedError) if how == "failed" else contextlib.nullcontext():
            fits.fit(trained, loader(), loader())
    assert traces(module, technique.changed) == traces(untouched, technique.changed)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_global_random_stream_is_left_alone(name):
    states = []
    for attached in ([], TECHNIQUES[name].attached()):
        torch.manual_seed(7)
        fit(Setting(), name, attached)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


class InterruptSecondBatch(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            raise InterruptedError


@pytest.mark.parametrize("name", TECHNIQUES)
def test_logged_loss_stays_the_users(name):
    """In the first step; in later ones the weights differ, as they should."""
    technique = TECHNIQUES[name]
    trainer = Setting().trainer([*technique.attached(), InterruptSecondBatch()])
    with pytest.raises(InterruptedError):
        trainer.fit(Setting().module(prepare=technique.prepare), loader(), loader())
    inputs, labels = (part[:BATCH_SIZE] for part in samples().tensors)
    model = network(technique.prepare)
    technique.textbook.change(model)
    model.rank = model.epoch = model.batch = 0
    inputs, loss_of = technique.textbook.mix(model, inputs, labels)
    expected = loss_of(model(inputs))
    torch.testing.assert_close(trainer.callback_metrics["train_loss"], expected.detach())
