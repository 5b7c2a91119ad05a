"""Settings, sessions and the slot between them: in a fit, around it, in copies, and whenever state is asked for."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_reg.callbacks import L1Penalty, L2Penalty
from lightning_reg.core.facts import Position
from lightning_reg.core.session import HOOKS, Session, kept
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.settings import SettingError
from tests.conformance.problem import BATCHES, Setting, SomebodysModule, loader
from tests.helpers import quiet_trainer


class Counter(Technique):
    """Counts steps."""

    position = Position.PENALTY
    state_dict = Technique.saved_state
    load_state_dict = Technique.load_saved_state

    def __init__(self, name="counter"):
        super().__init__()
        self.name = name

    @property
    def state_key(self):
        return self._generate_state_key(name=self.name)

    def new_session(self, run):
        return CounterSession(self, run)


@dataclass(eq=False)
class CounterSession(Session[Counter]):
    steps: int = kept(default=0)
    last: Tensor = kept(default_factory=lambda: torch.zeros(2))

    def after_step(self, step):
        self.steps += 1

    def result(self):
        return self.steps


class Interrupts(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            raise InterruptedError


def test_state_is_there_before_during_and_after_a_fit(tmp_path):
    class During(Callback):
        def on_train_batch_end(self, *_):
            seen.append(counter.state_dict()["steps"])

    counter, seen = Counter(), []
    assert counter.state_dict() == {}
    trainer = quiet_trainer(counter, During(), max_epochs=1)
    trainer.fit(SomebodysModule(), loader(), loader())
    assert seen == [1, 2, 3, 4, 5, 6]
    assert counter.session is None
    assert counter.last_result == BATCHES
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    saved = torch.load(tmp_path / "after.ckpt", weights_only=True)["callbacks"][counter.state_key]
    assert saved["steps"] == BATCHES
    assert torch.equal(saved["last"], torch.zeros(2))


def test_an_exception_ends_the_session_and_leaves_its_state(tmp_path):
    counter = Counter()
    saves = ModelCheckpoint(tmp_path, save_on_exception=True)
    trainer = quiet_trainer(counter, Interrupts(), saves, enable_checkpointing=True)
    with pytest.raises(InterruptedError):
        trainer.fit(SomebodysModule(), loader(), loader())
    assert counter.session is None
    assert Run.of(trainer) is None
    (path,) = tmp_path.glob("*.ckpt")
    assert torch.load(path, weights_only=True)["callbacks"][counter.state_key]["steps"] == 3


def test_a_second_fit_begins_anew():
    counter = Counter()
    for _ in range(2):
        quiet_trainer(counter, max_epochs=1).fit(SomebodysModule(), loader(), loader())
        assert counter.last_result == BATCHES


def test_a_resumed_fit_goes_on_counting(tmp_path):
    trainer = quiet_trainer(Counter(), max_epochs=1)
    trainer.fit(SomebodysModule(), loader(), loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    counter = Counter()
    quiet_trainer(counter, max_epochs=2).fit(SomebodysModule(), loader(), loader(), ckpt_path=tmp_path / "a.ckpt")
    assert counter.last_result == 2 * BATCHES


@pytest.mark.parametrize("when", ["before the fit starts", "in the middle of it"])
def test_state_that_comes_late_is_taken(when):
    """From a strategy that restores when the fit has started, or a finder that does in between."""

    class Loads(Callback):
        def setup(self, trainer, pl_module, stage):
            if when == "before the fit starts":
                counter.load_state_dict({"steps": 10, "last": torch.ones(2)})

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if when == "in the middle of it" and batch_idx == 0:
                counter.load_state_dict({"steps": 10, "last": torch.ones(2)})

    counter = Counter()
    quiet_trainer(counter, Loads(), max_epochs=1).fit(SomebodysModule(), loader(), loader())
    assert counter.last_result == 10 + BATCHES


@pytest.mark.parametrize(
    ("technique", "name"),
    [
        (L1Penalty(weight=0.1, proximal="false"), "proximal"),
        (L2Penalty(weight=0.1, exclude_norm_and_bias="no"), "exclude_norm_and_bias"),
    ],
)
def test_text_for_what_is_true_or_false_is_refused(technique, name):
    with pytest.raises(SettingError, match=f"{name} must be true or false, but is the text "):
        quiet_trainer(technique, max_epochs=1).fit(SomebodysModule(), loader(), loader())


def test_state_of_another_version_is_refused_in_a_sentence(tmp_path):
    trainer = quiet_trainer(Counter(), max_epochs=1)
    trainer.fit(SomebodysModule(), loader(), loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    saved["callbacks"][Counter().state_key] = {"count": 3}
    torch.save(saved, tmp_path / "a.ckpt")
    with pytest.raises(SettingError, match=r"must hold a state of Counter with .*start a new fit"):
        quiet_trainer(Counter()).fit(SomebodysModule(), loader(), loader(), ckpt_path=tmp_path / "a.ckpt")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda counter: pickle.loads(pickle.dumps(counter))])
def test_copies_carry_settings_and_state_but_no_run(copied):
    class Copies(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 2:
                copies.append(copied(counter))

    counter, copies = Counter("mine"), []
    copies.append(copied(counter))
    quiet_trainer(counter, Copies(), max_epochs=1).fit(SomebodysModule(), loader(), loader())
    copies.append(copied(counter))
    assert [made.name for made in copies] == ["mine"] * 3
    assert [made.state_dict().get("steps") for made in copies] == [None, 3, 6]
    assert all(made.session is None for made in copies)


def test_a_step_that_calls_the_one_above_it_counts_once():
    class Twice(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    class Module(SomebodysModule):
        def configure_optimizers(self):
            return Twice(self.parameters(), lr=0.1)

    counter = Counter()
    quiet_trainer(counter, max_epochs=1).fit(Module(), loader(), loader())
    assert counter.last_result == BATCHES


def test_two_trainers_have_runs_of_their_own():
    class Nested(Callback):
        """Fits another module in the middle of a fit."""

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 2:
                quiet_trainer(inner, max_epochs=1).fit(SomebodysModule(), loader(), loader())

    outer, inner = Counter(), Counter()
    quiet_trainer(outer, Nested(), max_epochs=1).fit(SomebodysModule(), loader(), loader())
    assert (outer.last_result, inner.last_result) == (BATCHES, BATCHES)


class Writes(Technique):
    """Writes down what it is told."""

    def __init__(self, name, position, told):
        super().__init__()
        self.name, self.at, self.told = name, position, told

    @property
    def position(self):
        return self.at

    def new_session(self, run):
        return WritesSession(self, run)


class WritesSession(Session[Writes]):
    pass


def _writes(hook):
    def method(self, *_):
        self.technique.told.append((self.technique.name, hook))

    return method


for _hook in HOOKS:
    setattr(WritesSession, _hook, _writes(_hook))


def test_what_happens_around_a_step_is_told_in_the_order_of_positions():
    told = []
    late, early = Writes("late", Position.AVERAGING, told), Writes("early", Position.PENALTY, told)
    trainer = quiet_trainer(late, early, max_epochs=1, limit_train_batches=1, limit_val_batches=1)
    trainer.fit(SomebodysModule(), loader(), loader())
    begins = told.index(("early", "batch_starts"))
    hooks = [hook for name, hook in told[begins:] if name == "late"]
    assert hooks == [
        "batch_starts",
        "window_begins",
        "before_backward",
        "after_backward",
        "step_begins",
        "before_step",
        "after_step",
        "batch_ends",
        "validation_starts",
        "validation_batch_starts",
        "validation_batch_ends",
        "validation_epoch_ends",
        "validation_ends",
        "epoch_ends",
        "train_ends",
    ]
    pairs = list(zip(told[begins::2], told[begins + 1 :: 2], strict=True))
    assert all(
        one == ("early", hook) and other == ("late", hook) for (one, other), hook in zip(pairs, hooks, strict=True)
    )


@pytest.mark.parametrize("fails", [False, True])
def test_no_hook_is_left_on_the_optimizer(fails):
    class Module(SomebodysModule):
        def configure_optimizers(self):
            self.optimizer = super().configure_optimizers()
            return self.optimizer

    module = Module()
    trainer = Setting().trainer([Counter(), *([Interrupts()] if fails else [])])
    if fails:
        with pytest.raises(InterruptedError):
            trainer.fit(module, loader(), loader())
    else:
        trainer.fit(module, loader(), loader())
    assert not module.optimizer._optimizer_step_pre_hooks
    assert not module.optimizer._optimizer_step_post_hooks
