"""SAM's second pass leaves everything but the gradients as a plain fit leaves it: each way to keep something, alone.

Weights have a learning rate of 0, so that what a step keeps doesn't depend on how it was trained.
"""

# ruff: noqa: ARG005  # one signature for all

import copy
import functools
import random
from collections import Counter, defaultdict, deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate
from torchmetrics import MeanMetric
from torchvision import tv_tensors

from lightning_reg.callbacks import AdversarialTraining, SharpnessAwareMinimization
from lightning_reg.settings import SettingError
from tests.core.test_isolation import Meter, Slotted, buffer, counting_closure, inference_tensor
from tests.helpers import quiet_trainer

BATCHES = 3


class Keeps(LightningModule):
    rate = 0.0
    passes = 0

    def __init__(self, make=lambda m: None, act=lambda m, out: None):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.it = make(self)
        self.act = act

    def training_step(self, batch, batch_idx):
        Keeps.passes += 1
        out = self.layer(batch[0])
        extra = self.act(self, out)
        return F.cross_entropy(out, batch[1]) + (
            extra if isinstance(extra, torch.Tensor) and extra.requires_grad else 0
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.layer.parameters(), lr=self.rate)


def samples():
    inputs = torch.randn(BATCHES * 4, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(inputs, torch.arange(BATCHES * 4) % 3)


def fitted(module, *callbacks, data=None, **settings):
    Keeps.passes = 0
    trainer = quiet_trainer(*callbacks, **settings)
    trainer.fit(module, DataLoader(samples(), 4) if data is None else data)
    return trainer


def teacher(module):
    made = copy.deepcopy(module.layer)
    nn.init.ones_(made.weight)
    return made


def follow(module, out):
    for one, other in zip(module.it.parameters(), module.layer.parameters(), strict=True):
        with torch.no_grad():
            one.mul_(0.5).add_(other, alpha=0.5)


def follow_by_data(module, out):
    for one, other in zip(module.it.parameters(), module.layer.parameters(), strict=True):
        one.data.mul_(0.5).add_(other.data, alpha=0.5)


def follow_by_other_data(module, out):
    for one, other in zip(module.it.parameters(), module.layer.parameters(), strict=True):
        one.data = one.data * 0.5 + other.data * 0.5


def enqueue(module, out):
    start = int(module.pointer)
    module.it[:, start : start + len(out)] = out.detach().T
    module.pointer[0] = (start + len(out)) % 32


def queue(module):
    module.register_buffer("pointer", torch.zeros(1, dtype=torch.long))
    return buffer(module, torch.zeros(3, 32))


def under_inference_mode(module, out):
    with torch.inference_mode():
        module.it.mul_(0.5).add_(1)


def weights_of(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.it.parameters()]).tolist()


def grow(module, out):
    module.register_buffer("kept", torch.cat([module.kept, out.detach()[0]]))


class Centers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(3))

    def forward(self, out):
        self.center.mul_(0.5).add_(out.detach().mean(0))
        return out - self.center


KINDS = {
    "a number": (lambda m: 0, lambda m, out: setattr(m, "it", m.it + 1), lambda m: m.it),
    "a list": (lambda m: [], lambda m, out: m.it.append(out.detach()), lambda m: len(m.it)),
    "a list that is cleared": (
        lambda m: [1],
        lambda m, out: (m.it.extend(m.it), m.it.pop(0), m.it.append(2)),
        lambda m: m.it,
    ),
    "a deque": (lambda m: deque([0], maxlen=9), lambda m, out: m.it.append(len(m.it)), lambda m: list(m.it)),
    "a set": (lambda m: set(), lambda m, out: m.it.add(len(m.it)), lambda m: m.it),
    "a Counter": (lambda m: Counter(), lambda m, out: m.it.update("a"), lambda m: m.it),
    "lists in a defaultdict": (
        lambda m: defaultdict(list),
        lambda m, out: m.it["a"].append(1),
        lambda m: m.it,
    ),
    "a meter": (lambda m: Meter(), lambda m, out: m.it.update(1), lambda m: m.it.count),
    "meters in a tuple": (lambda m: (Meter(),), lambda m, out: m.it[0].update(1), lambda m: m.it[0].count),
    "a meter in a meter": (
        lambda m: setattr(m, "outer", Meter()) or setattr(m.outer, "inner", [Meter()]),
        lambda m, out: m.outer.inner[0].update(1),
        lambda m: m.outer.inner[0].count,
    ),
    "slots": (lambda m: Slotted(), lambda m, out: m.it.add(), lambda m: m.it.count),
    "a method of a meter": (lambda m: Meter().update, lambda m, out: m.it(1), lambda m: m.it.__self__.count),
    "a partial": (
        lambda m: functools.partial(list.append, []),
        lambda m, out: m.it(1),
        lambda m: len(m.it.args[0]),
    ),
    "a closure": (counting_closure, lambda m, out: m.it(), lambda m: len(m.seen_count)),
    "a numpy array": (lambda m: np.zeros(3), lambda m, out: m.it.__iadd__(1), lambda m: m.it.tolist()),
    "numpy's random stream": (
        lambda m: np.random.default_rng(0),
        lambda m, out: m.it.random(),
        lambda m: m.it.bit_generator.state["state"]["state"],
    ),
    "torch's random stream": (
        lambda m: torch.Generator().manual_seed(0),
        lambda m, out: torch.rand((), generator=m.it),
        lambda m: m.it.get_state().tolist(),
    ),
    "Python's random stream": (lambda m: random.Random(0), lambda m, out: m.it.random(), lambda m: m.it.getstate()),
    "bytes": (lambda m: bytearray(1), lambda m, out: m.it.__setitem__(0, m.it[0] + 1), lambda m: m.it[0]),
    "a buffer": (lambda m: buffer(m, torch.zeros(3)), lambda m, out: m.it.add_(1), lambda m: m.kept.tolist()),
    "a buffer of integers": (
        lambda m: buffer(m, torch.zeros(3, dtype=torch.long)),
        lambda m, out: m.it.data.add_(1),
        lambda m: m.kept.tolist(),
    ),
    "a buffer by its data": (
        lambda m: buffer(m, torch.zeros(3)),
        lambda m, out: m.it.data.add_(1),
        lambda m: m.kept.tolist(),
    ),
    "a buffer that grows": (lambda m: buffer(m, torch.zeros(3)), grow, lambda m: m.kept.tolist()),
    "an expanded buffer": (
        lambda m: buffer(m, torch.zeros(1).expand(3)),
        lambda m, out: m.kept[0].add_(1),
        lambda m: m.kept.tolist(),
    ),
    "an expanded buffer that stays": (lambda m: buffer(m, torch.zeros(2, 1).expand(2, 3)), lambda m, out: None, None),
    "an inference tensor": (
        lambda m: buffer(m, inference_tensor()),
        under_inference_mode,
        lambda m: m.kept.tolist(),
    ),
    "a plain tensor": (lambda m: torch.zeros(()), lambda m, out: m.it.add_(1), lambda m: m.it.item()),
    "a plain tensor in an object": (
        lambda m: setattr(m, "meter", Meter()) or setattr(m.meter, "total", torch.zeros(())),
        lambda m, out: m.meter.total.add_(1),
        lambda m: m.meter.total.item(),
    ),
    "a queue": (queue, enqueue, lambda m: (m.kept.tolist(), m.pointer.tolist())),
    "a teacher": (teacher, follow, weights_of),
    "a teacher by its data": (teacher, follow_by_data, weights_of),
    "a teacher with other data": (teacher, follow_by_other_data, weights_of),
    "a gradient that no optimizer takes": (
        teacher,
        lambda m, out: m.it(out.detach()[:, [0, 0, 1, 2]]).square().sum(),
        lambda m: None if m.it.weight.grad is None else m.it.weight.grad.tolist(),
    ),
    "a metric": (lambda m: MeanMetric(), lambda m, out: m.it(1.0), lambda m: m.it.weight.item()),
    "statistics": (
        lambda m: nn.BatchNorm1d(3),
        lambda m, out: (m.it(out),),
        lambda m: (m.it.running_mean.tolist(), m.it.num_batches_tracked.item()),
    ),
    "statistics in a traced network": (
        lambda m: torch.jit.trace(nn.Sequential(Centers()), torch.eye(4, 3), check_trace=False),
        lambda m, out: (m.it(out),),
        lambda m: [buffer.tolist() for buffer in m.it.buffers()],
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_what_a_step_keeps_is_kept_once(name, accumulate):
    make, act, state = KINDS[name]
    plain, with_it = Keeps(make, act), Keeps(make, act)
    fitted(plain, accumulate_grad_batches=accumulate)
    assert Keeps.passes == BATCHES
    fitted(with_it, SharpnessAwareMinimization(rho=0.1), accumulate_grad_batches=accumulate)
    assert Keeps.passes == 2 * BATCHES
    if state is not None:
        assert state(with_it) == state(plain) != state(Keeps(make, lambda m, out: None))


class Masks(Callback):
    def on_after_backward(self, trainer, pl_module):
        pl_module.layer.weight.grad[0] = 0
        self.calls = getattr(self, "calls", 0) + 1


class Trained(Keeps):
    rate = 0.5


class MasksItself(Trained):
    def on_after_backward(self):
        self.layer.weight.grad[0] = 0


@pytest.mark.parametrize("by_module", [True, False])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradients_are_masked_in_both_passes(by_module, accumulate):
    """A row that is masked neither moves nor counts in the length of the climb, which is by hand here."""
    kind, callbacks = (MasksItself, []) if by_module else (Trained, [Masks()])
    module = kind()
    weights = [parameter.detach().clone() for parameter in module.layer.parameters()]
    fitted(module, SharpnessAwareMinimization(rho=0.1), *callbacks, accumulate_grad_batches=accumulate)
    for start in range(0, BATCHES, accumulate):
        batches = [samples()[4 * index : 4 * index + 4] for index in range(start, start + accumulate)]
        expected = []
        for above in (False, True):
            at = [weight.clone().requires_grad_() for weight in weights]
            if above:
                length = torch.cat([gradient.flatten() for gradient in expected]).norm()
                at = [(w + 0.1 * g / length).requires_grad_() for w, g in zip(weights, expected, strict=True)]
            loss = sum(F.cross_entropy(F.linear(batch[0], *at), batch[1]) for batch in batches) / accumulate
            expected = list(torch.autograd.grad(loss, at))
            expected[0][0] = 0
        weights = [w - 0.5 * g for w, g in zip(weights, expected, strict=True)]
    torch.testing.assert_close(
        [parameter.detach() for parameter in module.layer.parameters()], weights, rtol=0, atol=1e-6
    )
    assert [callback.calls for callback in callbacks] == ([] if by_module else [BATCHES])  # its own count is put back


def test_a_rho_of_zero_is_a_plain_step_to_the_bit():
    plain, with_it = Trained(), Trained()
    fitted(plain)
    fitted(with_it, SharpnessAwareMinimization(rho=0))
    assert Keeps.passes == BATCHES
    assert torch.equal(plain.layer.weight, with_it.layer.weight)


class Batches(Dataset):
    """As dictionaries with one large entry, and a list of samples."""

    def __init__(self, size=4):
        self.size = size

    def __len__(self):
        return BATCHES

    def __getitem__(self, index):
        inputs, labels = samples()[4 * index : 4 * index + 4]
        wide = F.pad(inputs * 255, (0, self.size - 4))
        others = {"array": inputs.numpy() * 255, "ids": [1, 2], "object": Meter()}
        return {"x": wide, "y": labels, "entries": wide.to_sparse(), "rows": wide.to_sparse_csr(), **others}


def as_they_are(size):
    return DataLoader(Batches(size), batch_size=None, collate_fn=lambda batch: batch)


WAYS = {
    "clean": lambda batch: (batch["x"] / 255, batch["y"]),
    "in place": lambda batch: (batch["x"].div_(255), batch["y"]),
    "by its data": lambda batch: (setattr(batch["x"], "data", batch["x"] / 255) or batch["x"], batch["y"]),
    "pop": lambda batch: (batch.pop("x") / 255, batch.pop("y")),
    "replaced": lambda batch: (batch.update(x=batch["x"] / 255) or batch["x"], batch["y"]),
    "a list": lambda batch: (batch["x"] / (255 if batch["ids"].pop() == 2 else 1), batch["y"]),
    "an array": lambda batch: (torch.from_numpy(np.divide(batch["array"], 255, out=batch["array"])), batch["y"]),
    "sparse": lambda batch: (batch["entries"].div_(255).to_dense(), batch["y"]),
    "its entries": lambda batch: (
        batch["entries"]._values().div_(255) is None or batch["entries"].to_dense(),
        batch["y"],
    ),
    "emptied": lambda batch: (batch["entries"].to_dense() / 255, batch["entries"].zero_() is None or batch["y"]),
    "sparse rows": lambda batch: (batch["rows"].values().div_(255) is None or batch["rows"].to_dense(), batch["y"]),
    "emptied rows": lambda batch: (batch["rows"].to_dense() / 255, batch["rows"].zero_() is None or batch["y"]),
    "an object": lambda batch: (
        batch["object"].update(1) or batch["x"] / (255 if batch["object"].count == 1 else 1),
        batch["y"],
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("size", [4, 2**17])
@pytest.mark.parametrize("way", WAYS)
def test_both_passes_get_the_batch_as_it_came(way, size):
    """Small batches are copied; large ones where the first one was changed."""

    class Changes(Trained):
        def training_step(self, batch, batch_idx):
            inputs, labels = WAYS[self.way](batch)
            return F.cross_entropy(self.layer(inputs[:, :4]), labels)

    found = []
    for name in ("clean", way):
        module = Changes()
        module.way = name
        data = as_they_are(size)
        fitted(module, SharpnessAwareMinimization(rho=0.5), data=data)
        found.append(module.layer.weight.detach())
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_large_batch_that_is_changed_for_the_first_time_makes_a_plain_step_and_a_warning():
    class Late(Trained):
        def training_step(self, batch, batch_idx):
            x = batch["x"].div_(255) if batch_idx else batch["x"] / 255
            Keeps.passes += 1
            return F.cross_entropy(self.layer(x[:, :4]), batch["y"])

    with pytest.warns(UserWarning, match=r"changed batch\[0\]\['x'\] in place for the first time.* a plain one"):
        fitted(
            Late(),
            SharpnessAwareMinimization(),
            data=as_they_are(2**17),
        )
    assert Keeps.passes == 2 + 1 + 2


def test_what_changes_in_the_second_pass_alone_is_warned_of_by_name():
    def act(module, out):
        if Keeps.passes % 2 == 0:
            module.it.add_(1)

    module = Keeps(lambda m: buffer(m, torch.zeros(2**19)), act)
    with pytest.warns(UserWarning, match=r"module\.(it|kept) changed when the step was run again, but not when"):
        fitted(module, SharpnessAwareMinimization(), max_epochs=2)
    assert module.kept[0] == 1


def test_iterators_are_warned_of_by_name():
    module = Keeps(lambda m: iter(range(100)), lambda m, out: next(m.it))
    with pytest.warns(UserWarning, match=r"module\.it, a range_iterator, can't be put back when a step is run again"):
        fitted(module, SharpnessAwareMinimization())


def test_own_loggers_are_written_to_once(tmp_path):
    module = Keeps(lambda m: CSVLogger(tmp_path), lambda m, out: m.it.log_metrics({"a": 1.0}))
    module.writes = (tmp_path / "lines.txt").open("w")
    module.act = lambda m, out: (m.it.log_metrics({"a": 1.0}), m.writes.write("line\n"))
    fitted(module, SharpnessAwareMinimization())
    module.writes.close()
    assert len(module.it.experiment.metrics) == BATCHES
    assert (tmp_path / "lines.txt").read_text() == "line\n" * BATCHES


def test_what_a_step_keeps_does_not_stay_in_memory():
    class Big:
        alive = 0

        def __init__(self):
            Big.alive += 1
            self.inside = [self.__class__.__name__]

        def __del__(self):
            Big.alive -= 1

    fitted(Keeps(lambda m: None, lambda m, out: setattr(m, "it", [Big()])), SharpnessAwareMinimization(), max_epochs=4)
    assert Big.alive <= 2


class Ramps(Keeps):
    """Weighs its loss by what micro-batches before have left: an attribute, a buffer in place, and a new tensor."""

    rate = 0.1

    def __init__(self):
        super().__init__()
        self.ramp = 1.0
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("center", torch.zeros(3))

    def training_step(self, batch, batch_idx):
        out = self.layer(batch[0])
        loss = self.ramp * self.scale.clone() * F.cross_entropy(out - self.center, batch[1])
        self.ramp *= 1.5
        self.scale.mul_(0.7)
        self.center = self.center + out.detach().mean(0)
        return loss.sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.ramp += 0.25


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_second_pass_begins_where_the_first_did(accumulate):
    settings = {"max_epochs": 2, "accumulate_grad_batches": accumulate}
    plain, climbing = Ramps(), Ramps()
    fitted(plain, **settings)
    fitted(climbing, SharpnessAwareMinimization(rho=1e-9), **settings)
    assert climbing.ramp == plain.ramp
    torch.testing.assert_close(climbing.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*a list_iterator, can't be put back")
@pytest.mark.parametrize(
    "technique", [SharpnessAwareMinimization(), AdversarialTraining(eps=0.1, input_key="wide", random_start=True)]
)
def test_a_batch_with_an_iterator_that_ends_is_refused(technique):
    class Reads(Trained):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.layer(next(batch["x"])), batch["y"])

    def with_an_iterator(items):
        inputs, labels = (torch.stack(part) for part in zip(*items, strict=True))
        return {"x": iter([inputs]), "wide": inputs, "y": labels}

    with pytest.raises(SettingError, match="training_step must take a batch that can be read twice"):
        fitted(Reads(), technique, data=DataLoader(samples(), batch_size=4, collate_fn=with_an_iterator))


@pytest.mark.filterwarnings("ignore:.*a generator, can't be put back")
def test_an_iterator_of_the_steps_own_that_ends_is_named_as_well():
    class Reads(Trained):
        def training_step(self, batch, batch_idx):
            return next(self.scales) * F.cross_entropy(self.layer(batch[0]), batch[1])

    module = Reads()
    module.scales = (scale for scale in (1.0,))
    with pytest.raises(SettingError, match="an iterator, of the batch or of its own, has nothing left"):
        fitted(module, SharpnessAwareMinimization())


class OfMasks(LightningModule):
    """Learns masks from images."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.network = nn.Conv2d(1, 1, 3, padding=1)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.network(batch["image"]), batch["mask"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    "make", [lambda: SharpnessAwareMinimization(rho=0.1), lambda: AdversarialTraining(eps=0.1, input_key="image")]
)
def test_images_and_masks_of_torchvision_are_put_back_as_plain_tensors_are(make):
    def fit(image, mask):
        torch.manual_seed(0)
        rows = [{"image": one, "mask": one.round()} for one in torch.rand(8, 1, 4, 4)]

        def batch(samples):
            pair = default_collate(samples)
            return {"image": image(pair["image"]), "mask": mask(pair["mask"])}

        module = OfMasks()
        quiet_trainer(make()).fit(module, DataLoader(rows, batch_size=4, collate_fn=batch))
        return parameters_to_vector(module.parameters())

    assert torch.equal(fit(tv_tensors.Image, tv_tensors.Mask), fit(torch.clone, torch.clone))
