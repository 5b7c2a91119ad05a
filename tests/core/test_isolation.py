"""A copy is evaluated, and whatever it does, nothing of it is seen in the module: each way to keep something, alone."""

# ruff: noqa: ARG005  # one signature for all

import csv
import functools
import io
import threading
import weakref
from collections import Counter, defaultdict, deque

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from lightning_reg.core.copies.isolation import isolated
from lightning_reg.core.wrapping import around
from lightning_reg.settings import SettingError
from tests.helpers import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


class Meter:
    def __init__(self):
        self.total = self.count = 0

    def update(self, value):
        self.total, self.count = self.total + value, self.count + 1


class Slotted:
    __slots__ = ("count",)

    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1


class Keeps(LightningModule):
    """Something to keep in ``self.it``, and what an evaluation does to it."""

    def __init__(self, make, act):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.it = make(self)
        self.act = act

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).sum()

    def validation_step(self, batch, batch_idx):
        self.act(self)
        self.log("loss", self.layer(batch[0]).sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def buffer(module, value):
    module.register_buffer("kept", value)
    return module.kept


def inference_tensor():
    with torch.inference_mode():
        return torch.zeros(3)


def file_of(module, folder):
    module.path = folder / "log.txt"
    return module.path.open("w")


def counting_closure(module):
    count = []

    def append():
        count.append(1)
        return len(count)

    module.seen_count = count
    return append


def closure_over_itself(module):
    module.calls = 0

    def forward(inputs):
        module.calls += 1
        return inputs

    return forward


def in_place(module):
    with torch.inference_mode(module.it.is_inference()):
        module.it.add_(1)


KINDS = {
    "a list": (lambda m: [], lambda m: m.it.append(1), lambda m: len(m.it)),
    "a list in a dict": (lambda m: {"a": []}, lambda m: m.it["a"].append(1), lambda m: len(m.it["a"])),
    "a deque": (lambda m: deque(maxlen=3), lambda m: m.it.append(1), lambda m: len(m.it)),
    "a set": (lambda m: set(), lambda m: m.it.add(1), lambda m: len(m.it)),
    "a Counter": (lambda m: Counter(), lambda m: m.it.update("a"), lambda m: m.it["a"]),
    "a defaultdict": (lambda m: defaultdict(lambda: 0), lambda m: m.it.update(a=m.it["a"] + 1), lambda m: m.it["a"]),
    "a meter": (lambda m: Meter(), lambda m: m.it.update(1), lambda m: m.it.count),
    "slots": (lambda m: Slotted(), lambda m: m.it.add(), lambda m: m.it.count),
    "a method of a meter": (
        lambda m: Meter().update,
        lambda m: m.it(1),
        lambda m: m.it.__self__.count,
    ),
    "a numpy array": (lambda m: np.zeros(3), lambda m: m.it.__iadd__(1), lambda m: m.it.sum()),
    "numpy's random stream": (
        lambda m: np.random.default_rng(0),
        lambda m: m.it.random(),
        lambda m: m.it.bit_generator.state["state"]["state"],
    ),
    "torch's random stream": (
        lambda m: torch.Generator().manual_seed(0),
        lambda m: torch.rand((), generator=m.it),
        lambda m: m.it.get_state().sum().item(),
    ),
    "a buffer": (lambda m: buffer(m, torch.zeros(3)), in_place, lambda m: m.kept.sum().item()),
    "a buffer that grows": (
        lambda m: buffer(m, torch.zeros(3)),
        lambda m: m.register_buffer("kept", torch.ones(5)),
        lambda m: m.kept.sum().item(),
    ),
    "an expanded buffer": (
        lambda m: buffer(m, torch.zeros(1).expand(3)),
        lambda m: m.kept[0].add_(1),
        lambda m: m.kept.sum().item(),
    ),
    "an inference tensor": (lambda m: buffer(m, inference_tensor()), in_place, lambda m: m.kept.sum().item()),
    "a view": (lambda m: [torch.zeros(4)], lambda m: m.it[0][:2].add_(1), lambda m: m.it[0].sum().item()),
    "a tensor with a history": (
        lambda m: (m.layer.weight * 2).sum(),
        lambda m: m.it.detach().mul_(2),
        lambda m: m.it.item(),
    ),
    "a parameter": (lambda m: m.layer.weight, lambda m: m.layer.weight.data.add_(1), lambda m: m.it.sum().item()),
    "a module in a list": (
        lambda m: [nn.BatchNorm1d(2)],
        lambda m: m.it[0].running_mean.add_(1),
        lambda m: m.it[0].running_mean.sum().item(),
    ),
    "a metric": (lambda m: MeanMetric(), lambda m: m.it.update(1.0), lambda m: m.it.weight.item()),
    "a closure": (counting_closure, lambda m: m.it(), lambda m: len(m.seen_count)),
    "a closure over the module": (closure_over_itself, lambda m: m.it(1), lambda m: m.calls),
    "a partial": (lambda m: functools.partial(m.__dict__.setdefault, "a"), lambda m: m.it(3), lambda m: "a" in vars(m)),
    "a weak reference": (
        lambda m: (weakref.ref(m.layer),),
        lambda m: m.it[0]().weight.data.add_(1),
        lambda m: m.layer.weight.sum().item(),
    ),
    "a weak dictionary": (
        lambda m: weakref.WeakKeyDictionary({m.layer: []}),
        lambda m: m.it[m.layer].append(1),
        lambda m: len(m.it[m.layer]),
    ),
    "a lock": (
        lambda m: [threading.RLock(), threading.Lock()],
        lambda m: m.it[1].acquire(),
        lambda m: m.it[1].locked(),
    ),
    "itself": (lambda m: [m], lambda m: setattr(m.it[0], "more", 1), lambda m: hasattr(m, "more")),
    "a forward hook": (
        lambda m: m.layer.register_forward_hook(lambda *_: vars(m).update(ran=vars(m).get("ran", 0) + 1)),
        lambda m: None,
        lambda m: vars(m).get("ran", 0),
    ),
    "a parametrized layer": (
        lambda m: parametrizations.spectral_norm(nn.Linear(3, 3)),
        lambda m: m.it.train()(torch.ones(3)),
        lambda m: m.it.parametrizations.weight[0]._u.sum().item(),
    ),
    "a part that is compiled": (
        lambda m: torch.compile(nn.BatchNorm1d(2), backend="eager"),
        lambda m: m.it.train()(torch.arange(4.0).view(2, 2)),
        lambda m: m.it._orig_mod.running_mean.sum().item(),
    ),
    "a function that is compiled": (
        lambda m: torch.compile(closure_over_itself(m), backend="eager"),
        lambda m: m.it(torch.ones(2)),
        lambda m: m.calls,
    ),
    "the trainer": (lambda m: None, lambda m: setattr(m.trainer, "mine", 1), lambda m: hasattr(m.trainer, "mine")),
    "a module under another name": (lambda m: np, lambda m: m.it.zeros(3), lambda m: None),
}


def evaluated(module, trainer):
    """What a copy logs in one validation step."""
    logged = []
    with isolated(trainer, module, "this", lambda name, value, **_: logged.append((name, value.item()))) as copied:
        assert not copied.training
        copied.trainer.strategy.validation_step((torch.ones(2, 4),), 0)
    return logged


def loader():
    return DataLoader(TensorDataset(torch.ones(4, 4)), batch_size=2)


@pytest.mark.parametrize("name", KINDS)
def test_what_an_evaluation_keeps_is_gone_with_the_copy(name):
    make, act, state = KINDS[name]
    logged = []

    class Evaluates(Keeps):
        def on_train_epoch_end(self):
            before = state(self), set(vars(self)), torch.get_rng_state()
            logged.extend(evaluated(self, self.trainer))
            assert (state(self), set(vars(self))) == before[:2]
            assert torch.equal(torch.get_rng_state(), before[2])

    module = Evaluates(make, act)
    quiet_trainer().fit(module, loader())
    assert len(logged) == 1  # it did run
    if name not in ("a parameter", "a weak reference"):  # which it changed in the copy
        assert logged == [("loss", module.layer(torch.ones(2, 4)).sum().item())]
    before = state(module)
    if before is not None:  # done to the module itself it is seen: what is asserted above could fail
        act(module)
        module.layer(torch.ones(2, 4))
        assert state(module) != before


def test_loggers_files_and_writers_of_the_users_own_are_silent(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    class Writes(Keeps):
        def __init__(self):
            super().__init__(lambda m: file_of(m, tmp_path), lambda m: m.it.write("a line\n"))
            self.writer = SummaryWriter(tmp_path / "own")
            self.mine = CSVLogger(tmp_path, name="mine")
            self.memory = io.StringIO()
            self.rows = csv.writer(self.memory)

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.writer.add_scalar("a", 1.0, 0)
            self.mine.log_metrics({"a": 1.0})
            self.mine.save()
            self.rows.writerow([1, 2])
            self.logger.log_metrics({"b": 1.0}, step=0)
            self.logger.experiment.log_metrics({"b": 1.0}, step=0)

        def on_train_epoch_end(self):
            evaluated(self, self.trainer)

    module = Writes()
    quiet_trainer(logger=CSVLogger(tmp_path, name="trainer's"), log_every_n_steps=1).fit(module, loader())
    module.it.close()
    module.writer.close()
    assert module.path.read_text() == module.memory.getvalue() == ""
    assert not list((tmp_path / "mine").rglob("metrics.csv"))
    assert all("b" not in path.read_text() for path in (tmp_path / "trainer's").rglob("metrics.csv"))


def test_hooks_of_the_data_and_layers_around_methods_run_on_the_copy():
    class Moves(Keeps):
        moved = 0

        def on_after_batch_transfer(self, batch, dataloader_idx):
            self.moved += 1
            return batch

        def on_train_epoch_end(self):
            before = self.moved
            with isolated(self.trainer, self, "this", lambda *_, **__: None) as copied:
                copied.trainer.strategy.batch_to_device((torch.ones(1, 4),))
                copied._on_before_batch_transfer((torch.ones(1, 4),))
                copied.trainer.strategy.validation_step((torch.ones(2, 4),), 0)
                owners.append(copied)
                assert copied.moved == before + 1
            assert self.moved == before

    owners = []
    module = Moves(lambda m: [], lambda m: m.it.append(1))
    handle = around(module, "validation_step", lambda inner, *args: (inner(*args), inner(*args)))
    quiet_trainer().fit(module, loader())
    handle.remove()
    assert (len(module.it), len(owners[0].it)) == (0, 2)


def test_a_module_that_is_compiled_as_a_whole_is_copied_uncompiled():
    class Evaluates(Keeps):
        def on_train_epoch_end(self):
            evaluated(self, self.trainer)

    module = Evaluates(lambda m: [], lambda m: m.it.append(1))
    quiet_trainer().fit(torch.compile(module, backend="eager"), loader())
    assert module.it == []


@pytest.mark.parametrize("where", ["module.it", "module.layer.handle"])
def test_what_cannot_be_copied_is_refused_by_name(where):
    module = Keeps(lambda m: None, lambda m: None)
    owner = module if where == "module.it" else module.layer
    setattr(owner, where.rpartition(".")[2], (letter for letter in "ab"))
    trainer = quiet_trainer()
    with pytest.raises(
        SettingError, match=f"{where} must be something that can be copied with this.* but is generator"
    ):
        evaluated(module, trainer)
