"""BatchNorm's statistics for averaged weights, whatever a training step does besides, against passes by hand."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_reg.callbacks import (
    ActivationStats,
    ExponentialMovingAverage,
    GeneralizationGap,
    SharpnessAwareMinimization,
    StochasticWeightAverage,
)
from tests.callbacks.averaged import Normed, equal, fit, state
from tests.conformance.problem import BATCHES, loader, resumable_loader, samples

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*`dataloader_iter`"),
    # Of torch's compiler, wherever a hook breaks the graph of a module that is compiled as a whole.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
]
TOLERANCE = {"rtol": 0, "atol": 1e-6}


def average(**settings):
    return ExponentialMovingAverage(**{"decay": 0.8, "buffers": "recompute", **settings})


def batches():
    return [inputs for inputs, _ in loader()]


def statistics(inputs):
    """Mean over batches of their means and variances."""
    with torch.no_grad():
        means = torch.stack([entry.mean(0) for entry in inputs])
        variances = torch.stack([entry.var(0) for entry in inputs])
    return means.mean(0), variances.mean(0)


def assert_statistics(norm, inputs):
    mean, variance = statistics(inputs)
    torch.testing.assert_close(norm.running_mean, mean, **TOLERANCE)
    torch.testing.assert_close(norm.running_var, variance, **TOLERANCE)
    assert norm.num_batches_tracked == len(inputs)


class Meter:
    """Neither a module nor a container."""

    def __init__(self):
        self.total = 0.0


STEPS = []


class Counting(Normed):
    """A training step with consequences of every kind."""

    def __init__(self):
        super().__init__()
        self.losses, self.counts, self.meter = [], {"steps": 0}, Meter()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(12, 6))

    def forward(self, inputs):
        self.counts["forward"] = self.counts.get("forward", 0) + 1
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        STEPS.append(batch_idx)
        inputs, labels = batch
        batch.clear()
        loss = F.cross_entropy(self(inputs), labels)
        with torch.no_grad():
            for slow, weight in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(weight, 0.1)
            self.queue.copy_(torch.cat([inputs[:4], self.queue[:-4]]))
        self.losses.append(loss.item())
        self.meter.total += loss.item()
        self.counts["steps"] += 1
        return loss


@pytest.mark.parametrize("make", [average, lambda: StochasticWeightAverage(start=0), lambda: average(validate="both")])
def test_nothing_of_the_users_is_touched(make):
    plain, with_it = Counting(), Counting()
    STEPS.clear()
    fit(module=plain)
    steps = list(STEPS)
    STEPS.clear()
    fit(make(), module=with_it)
    assert steps == STEPS
    for name in ("losses", "counts"):
        assert getattr(with_it, name) == getattr(plain, name)
    assert with_it.meter.total == plain.meter.total
    assert torch.equal(with_it.queue, plain.queue)
    assert equal(state(with_it.teacher), state(plain.teacher))
    assert_statistics(with_it.net[1], [with_it.net[0](inputs) for inputs in batches()])


@pytest.mark.parametrize("validate", ["averaged", "both"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_what_runs_a_step_again_or_watches_changes_nothing(accumulate, validate):
    others = SharpnessAwareMinimization(rho=0.1), GeneralizationGap(verbose=False), ActivationStats()
    settings = {"accumulate_grad_batches": accumulate, "log_every_n_steps": 1}
    module, _ = fit(average(validate=validate), *others, **settings)
    assert_statistics(module.net[1], [module.net[0](inputs) for inputs in batches()])


class Manual(Normed):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


class Fetches(Normed):
    def training_step(self, dataloader_iter):
        batch, _, _ = next(dataloader_iter)
        return F.cross_entropy(self(batch[0]), batch[1])


class Endless(IterableDataset):
    def __iter__(self):
        return iter(samples())


@pytest.mark.parametrize("kind", ["manual", "iterator", "endless"])
def test_no_way_of_training_is_refused(kind):
    module = {"manual": Manual, "iterator": Fetches, "endless": Normed}[kind]()
    train = (lambda: DataLoader(Endless(), batch_size=8)) if kind == "endless" else loader
    fit(average(), module=module, train=train)
    assert_statistics(module.net[1], [module.net[0](inputs) for inputs in batches()])


@pytest.mark.parametrize("module", [Manual, Fetches])
def test_where_there_is_no_batch_norm_nothing_is_hooked_or_asked(module):
    hooks = []

    class Plain(module):
        def __init__(self):
            super().__init__()
            self.net[1] = nn.LayerNorm(12)

        def on_train_batch_start(self, *_):
            hooks.extend(part for part in self.modules() if part._forward_pre_hooks or part._forward_hooks)

    fit(StochasticWeightAverage(start=0), module=Plain())
    assert not hooks


class TwoParts(Normed):
    """The second's input is the first's output, by way of something else or not; a loss and an unused part beside."""

    def __init__(self, between=None):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.ReLU())
        self.head = nn.Sequential(nn.BatchNorm1d(12), nn.ReLU(inplace=True), nn.Linear(12, 3))
        self.parts = nn.ModuleDict({"loss": nn.CrossEntropyLoss(), "unused": nn.BatchNorm1d(3)})
        self.between = between

    def forward(self, inputs):
        raise NotImplementedError

    def training_step(self, batch, batch_idx):
        features = self.body(batch[0])
        if self.between:
            features = self.between(features)
        return self.parts["loss"](self.head(features), batch[1])

    def validation_step(self, batch, batch_idx):
        pass


def test_parts_that_are_called_one_after_the_other():
    module, _ = fit(average(), module=TwoParts())
    assert_statistics(module.head[0], [module.body(inputs) for inputs in batches()])
    assert torch.equal(module.parts["unused"].running_mean, torch.zeros(3))


class ReturnsMoreInTraining(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = nn.Sequential(body, nn.Sigmoid(), nn.Dropout(0.5))

    def forward(self, inputs):
        features = self.body(inputs)
        return (inputs, features) if self.training else features.sum(1)


class TakesFeatures(TwoParts):
    def __init__(self):
        super().__init__(between=lambda outputs: outputs[1])
        self.body = ReturnsMoreInTraining(self.body)


def test_a_part_that_returns_something_else_in_evaluation():
    """Dropout in it stays off: it would change the variance."""
    module, _ = fit(average(), module=TakesFeatures())
    assert all(part.training for part in module.modules())
    module.eval()
    assert_statistics(module.head[0], [module.body.body(inputs) for inputs in batches()])


class CallsForward(TwoParts):
    """Its parts are one network by way of ``forward``, which the step calls by name."""

    def forward(self, inputs):
        return self.head(self.body(inputs) * 2)

    def training_step(self, batch, batch_idx):
        return self.parts["loss"](self.forward(batch[0]), batch[1])


def test_a_forward_that_is_called_by_its_name():
    module, _ = fit(average(), module=CallsForward())
    assert_statistics(module.head[0], [module.body(inputs) * 2 for inputs in batches()])
    assert "forward" not in vars(module)


def test_what_can_only_be_estimated_is_warned_of_by_name():
    with pytest.warns(UserWarning, match="BatchNorm's statistics in head are only estimated"):
        module, _ = fit(average(decay=0.0), module=TwoParts(between=lambda features: features * 2))
    assert module.head[0].num_batches_tracked == BATCHES


def test_parts_of_a_network_that_are_called_by_themselves():
    class Encodes(Normed):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net[1:](self.net[0](batch[0])), batch[1])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # norms that are called without what is before them
        module, _ = fit(average(decay=1.0), module=Encodes())
    assert module.net[1].num_batches_tracked == BATCHES


@pytest.mark.parametrize("where", ["module", "network", "wrapped"])
def test_compiled_networks(where):
    torch._dynamo.reset()
    module = Normed()
    if where == "module":
        compiled = torch.compile(module, backend="aot_eager")
    elif where == "network":
        module.net.compile(backend="aot_eager")
        compiled = module
    else:
        module.net = torch.compile(module.net, backend="aot_eager")
        compiled = module
    fit(average(), module=compiled)
    first, norm = (getattr(module.net, "_orig_mod", module.net)[place] for place in (0, 1))
    assert_statistics(norm, [first(inputs) for inputs in batches()])


def test_inputs_that_the_network_changes_are_those_that_it_was_given():
    class Spoils(Normed):
        def __init__(self):
            super().__init__()
            self.net.insert(0, nn.ReLU(inplace=True))

    def fresh():  # else it would change the data set
        return DataLoader([(inputs.clone(), label) for inputs, label in samples()], batch_size=8)

    module, _ = fit(average(), module=Spoils(), train=fresh, limit_val_batches=0)
    assert_statistics(module.net[2], [module.net[1](inputs.relu()) for inputs in batches()])


def test_only_as_much_is_remembered_as_is_allowed(monkeypatch):
    monkeypatch.setattr(
        "lightning_reg.callbacks.weights.averages.remembered_inputs._MOST_BYTES", 2 * 8 * 6 * 4
    )  # two batches
    module, _ = fit(average())
    assert_statistics(module.net[1], [module.net[0](inputs) for inputs in batches()[-2:]])


AVERAGES = {"ema": average, "swa": lambda: StochasticWeightAverage(start=0, interval="step")}


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("make", AVERAGES.values(), ids=AVERAGES)
def test_checkpoints_between_validations_have_statistics_of_the_average(make, weights_only, tmp_path):
    steps = [BATCHES + 2, 2 * BATCHES]
    saves = ModelCheckpoint(
        tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, save_weights_only=weights_only, monitor=None
    )
    whole, _ = fit(make(), saves, max_epochs=2, limit_val_batches=0, enable_checkpointing=True)
    for step, seen in zip(steps, (2, BATCHES), strict=True):
        module = Normed()
        module.load_state_dict(torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"])
        assert_statistics(module.net[1], [module.net[0](inputs) for inputs in batches()[:seen]])
    assert equal(state(module), state(whole))
    assert equal(state(whole), state(fit(make(), max_epochs=2, limit_val_batches=0)[0]))  # as if nothing had been saved


@pytest.mark.parametrize("step", [BATCHES, BATCHES + 2, 2 * BATCHES + 3])
def test_resumed_within_an_epoch_is_uninterrupted(step, tmp_path):
    def run(**how):
        saves = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, enable_version_counter=False)
        settings = {"val_check_interval": 2, "train": resumable_loader, "enable_checkpointing": True}
        module, trainer = fit(average(), saves, **settings, **how)
        return state(module), trainer.callback_metrics["val_loss"]

    whole, loss = run()
    (tmp_path / f"step={step}.ckpt").rename(tmp_path / "start.ckpt")
    saved = torch.load(tmp_path / "start.ckpt", weights_only=True)["lightning_reg"]["ExponentialMovingAverage_1"]
    assert len(saved["inputs"]["steps"]) == step % BATCHES
    resumed, loss_too = run(ckpt_path=tmp_path / "start.ckpt")
    assert equal(resumed, whole)
    assert loss == loss_too
