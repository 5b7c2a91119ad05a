"""SAM beside what the conformance suite asks: what counts once, what is drawn twice alike, and what overflows."""

import functools
import math
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy

from lightning_reg.callbacks import BatchMixing, GradientClipping, InsertDropout, SharpnessAwareMinimization
from lightning_reg.core.step import Run
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.helpers import quiet_trainer

RHO = 0.3
BATCHES, BATCH_SIZE = 4, 6


def samples():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCHES * BATCH_SIZE, 5, generator=generator)
    return TensorDataset(inputs, (inputs[:, 0] > 0).long())


def loader():
    return DataLoader(samples(), batch_size=BATCH_SIZE)


class Theirs(LightningModule):
    """Counts in every way that people count."""

    def __init__(self, *layers):
        super().__init__()
        torch.manual_seed(1)
        self.network = nn.Sequential(nn.Linear(5, 8), *layers, nn.Linear(8, 2))
        self.accuracy = MulticlassAccuracy(2, average="micro")
        self.area = BinaryAUROC()
        self.mean_loss = MeanMetric()
        self.register_buffer("calls", torch.zeros(()))
        self.outputs, self.steps, self.seen = [], 0, []

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        logits = self.network(inputs)
        loss = F.cross_entropy(logits, labels)
        self.seen.append(logits.detach())  # a list, which counts once
        self.every.append((batch_idx, inputs.clone(), logits.detach()))
        self.calls += 1
        self.steps += 1
        self.outputs.append(loss.detach())
        self.accuracy(logits, labels)
        self.area(logits.detach()[:, 1], labels)
        self.log_dict({"loss": loss, "accuracy": self.accuracy, "area": self.area}, on_step=False, on_epoch=True)
        self.mean_loss(loss.detach())
        if self.logger:
            self.logger.experiment.add_scalar("directly", loss.detach(), self.global_step)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)

    rate = 0.0  # so that all can be computed again
    every: list


@pytest.fixture(autouse=True)
def _nothing_is_counted_yet():
    Theirs.every = []


def fitted(module, *callbacks, train=loader, **settings):
    Theirs.every = []
    sam = SharpnessAwareMinimization(rho=RHO)
    trainer = quiet_trainer(sam, *callbacks, **settings)
    trainer.fit(module, train())
    return trainer


@pytest.mark.parametrize("accumulate", [1, 3])
def test_logs_metrics_buffers_and_lists_count_once(accumulate):
    with_it, without = (Theirs(nn.BatchNorm1d(8), nn.ReLU()) for _ in range(2))
    trainer = fitted(with_it, accumulate_grad_batches=accumulate)
    assert len(Theirs.every) == 2 * BATCHES  # the second pass did run
    plain = quiet_trainer()
    plain.fit(without, loader())
    assert with_it.steps == len(with_it.outputs) == len(with_it.seen) == BATCHES
    assert with_it.calls == BATCHES
    assert with_it.mean_loss.compute() == without.mean_loss.compute()
    buffers = dict(without.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in with_it.named_buffers())
    for name in ("loss", "accuracy", "area"):
        assert torch.equal(trainer.callback_metrics[name], plain.callback_metrics[name])


def test_nothing_is_written_twice(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module = Theirs(nn.ReLU())
    logger = TensorBoardLogger(tmp_path, name=None, version="")
    fitted(module, logger=logger, log_every_n_steps=1)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [scalar.step for scalar in events.Scalars("directly")] == list(range(BATCHES))
    rises = [scalar.value for scalar in events.Scalars("sharpness/loss_rise")]
    expected = [
        F.cross_entropy(second, labels) - F.cross_entropy(first, labels)
        for (_, _, first), (_, _, second), (_, labels) in zip(
            Theirs.every[::2], Theirs.every[1::2], loader(), strict=True
        )
    ]
    assert rises == pytest.approx([rise.item() for rise in expected], abs=1e-6)
    assert min(rises) > 0


def test_random_numbers_are_the_same_in_both_passes_and_of_each_micro_batch():
    """Somebody's dropout, which draws from the global stream; inserted dropout; and mixed inputs, in one window."""

    class Masks(nn.Module):
        masks: list

        def forward(self, inputs):
            outputs = F.dropout(torch.ones_like(inputs), training=self.training)
            self.masks.append(outputs)
            return inputs * outputs

    masks = Masks.masks = []
    inserted = []
    layer = nn.Tanh()
    module = Theirs(layer, Masks())
    state = torch.get_rng_state()
    callbacks = [BatchMixing(Mixup()), InsertDropout(p=0.5, include=("network.1",))]
    quiet = quiet_trainer()  # how the global stream stands after the same fit without it
    Theirs.every = []
    quiet.fit(Theirs(nn.Tanh(), Masks()), loader())
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    masks.clear()
    module.network[2].register_forward_pre_hook(lambda _, args: inserted.append(args[0] == 0))
    fitted(module, *callbacks, accumulate_grad_batches=BATCHES)
    assert torch.equal(torch.get_rng_state(), after)
    first, second = Theirs.every[:BATCHES], Theirs.every[BATCHES:]
    assert [batch_idx for batch_idx, *_ in second] == list(range(BATCHES))
    assert all(torch.equal(one[1], two[1]) for one, two in zip(first, second, strict=True))
    for drawn in (masks, inserted):
        assert all(torch.equal(*pair) for pair in zip(drawn[:BATCHES], drawn[BATCHES:], strict=True))
        assert not torch.equal(drawn[0], drawn[1])


class Squeezed(Theirs):
    """Whose loss can be made to overflow in the first or the second pass."""

    rate = 0.1

    def __init__(self, overflows):
        super().__init__(nn.ReLU())
        self.overflows = overflows
        self.finite = []

    def training_step(self, batch, batch_idx):
        Theirs.every.append(all(bool(parameter.isfinite().all()) for parameter in self.parameters()))
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        return loss * float("inf") if (len(Theirs.every) - 1) % 2 in self.overflows else loss


def scaled():
    return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("with_scaler", [True, False])
@pytest.mark.parametrize("adaptive", [False, True])
def test_where_the_second_pass_overflows_the_first_passs_gradient_is_used(adaptive, with_scaler, fused):
    def weights(callbacks, overflows):
        Squeezed.configure_optimizers = lambda self: torch.optim.SGD(self.parameters(), lr=0.1, fused=fused)
        module, Theirs.every = Squeezed(overflows), []
        quiet_trainer(*callbacks, plugins=scaled() if with_scaler else [], limit_train_batches=1).fit(module, loader())
        return [parameter.detach() for parameter in module.parameters()]

    rho = 1.0 if adaptive else 0.5
    with_it = weights([SharpnessAwareMinimization(rho=rho, adaptive=adaptive)], overflows=(1,))
    assert len(Theirs.every) == 2
    plain = weights([], overflows=())
    # The gradient is got back from weights of about 1 that had moved by about 0.1: to some 1e-6 of itself.
    torch.testing.assert_close(with_it, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("fused", "overflows"), [(False, (0,)), (False, (0, 1)), (True, (0, 1))])
def test_where_the_first_pass_overflows_the_scaler_skips_the_step_and_weights_stay_numbers(fused, overflows):
    Squeezed.configure_optimizers = lambda self: torch.optim.SGD(self.parameters(), lr=0.1, fused=fused)
    module, Theirs.every = Squeezed(overflows), []
    before = [parameter.clone() for parameter in module.parameters()]
    plugins = scaled()
    quiet_trainer(SharpnessAwareMinimization(), plugins=plugins, limit_train_batches=1).fit(module, loader())
    assert Theirs.every == [True, True]
    assert all(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))
    assert plugins[0].scaler.get_scale() == 32.0


class Experts(LightningModule):
    """Whose inputs go to the second expert once the gate has risen, which is at the perturbed weights."""

    def __init__(self, overflows):
        super().__init__()
        self.overflows = overflows
        self.gate, self.first, self.second = (nn.Linear(1, 1, bias=False) for _ in range(3))
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def training_step(self, batch, batch_idx):
        gated = self.gate(torch.ones(4, 1))
        has_risen = bool(gated.detach().max() > 1)
        loss = ((self.second if has_risen else self.first)(gated) ** 2).mean()
        return loss * float("inf") if has_risen and self.overflows else loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("overflows", [False, True])
@pytest.mark.parametrize("with_scaler", [False, True])
def test_an_expert_that_only_one_pass_reaches_is_stepped_by_that_of_the_pass_that_counts(with_scaler, overflows):
    module = Experts(overflows)
    plugins = scaled() if with_scaler else []
    quiet_trainer(SharpnessAwareMinimization(rho=RHO), plugins=plugins, limit_train_batches=1).fit(module, loader())
    high = 1 + RHO / 2**0.5  # the gate, up there
    expected = [1 - 0.1 * 2, 1 - 0.1 * 2, 1.0] if overflows else [1 - 0.1 * 2 * high, 1.0, 1 - 0.1 * 2 * high**2]
    weights = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    torch.testing.assert_close(weights, torch.tensor(expected), rtol=0, atol=5e-3 if with_scaler else 1e-6)


class Rows(LightningModule):
    """Whose table has sparse gradients, and reads other rows once the gate has risen; there the loss is infinite."""

    def __init__(self):
        super().__init__()
        self.gate, self.table = nn.Linear(1, 1, bias=False), nn.Embedding(4, 1, sparse=True)
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def training_step(self, batch, batch_idx):
        gated = self.gate(torch.ones(1, 1))
        has_risen = bool(gated.detach().max() > 1)
        loss = (self.table(torch.tensor([1, 2] if has_risen else [0, 1])) * gated).sum()
        return loss * float("inf") if has_risen else loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_rows_of_an_embedding_are_stepped_by_the_first_passs_gradient_where_the_second_overflows():
    module = Rows()
    quiet_trainer(SharpnessAwareMinimization(rho=RHO), limit_train_batches=1).fit(module, loader())
    torch.testing.assert_close(module.table.weight.detach().flatten(), torch.tensor([0.9, 0.9, 1.0, 1.0]))
    torch.testing.assert_close(module.gate.weight.item(), 0.8)


def test_gradients_in_half_precision_that_overflow_beside_their_weights_make_a_plain_step():
    class Steep(Theirs):
        def __init__(self):
            super().__init__(nn.ReLU())
            self.network = nn.Linear(2, 1, bias=False).half()
            nn.init.constant_(self.network.weight, 2.0)

        def training_step(self, batch, batch_idx):
            weight = self.network.weight
            Theirs.every.append(bool(weight.isfinite().all()))
            return ((weight - weight.detach()) * 40000).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=2.0**-16)

    module, Theirs.every = Steep(), []
    quiet_trainer(SharpnessAwareMinimization(adaptive=True), limit_train_batches=1).fit(module, loader())
    assert Theirs.every == [True, True]
    torch.testing.assert_close(module.network.weight, torch.full((1, 2), 2 - 40000 / 2**16).half(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("settings", [{}, {"adaptive": True}, {"friendly": True}])
def test_gradients_that_are_infinite_until_they_are_clipped_make_a_plain_step(settings):
    class Vertical(Theirs):
        rate = 0.1

        def __init__(self):
            super().__init__(nn.ReLU())
            self.network = nn.Linear(2, 1, bias=False)
            with torch.no_grad():
                self.network.weight.copy_(torch.tensor([[0.0, 4.0]]))

        def training_step(self, batch, batch_idx):
            return self.network.weight.sqrt().sum()

    module = Vertical()
    clipping = GradientClipping(algorithm="value", max_value=0.5)
    quiet_trainer(SharpnessAwareMinimization(**settings), clipping, limit_train_batches=1).fit(module, loader())
    torch.testing.assert_close(module.network.weight.detach(), torch.tensor([[-0.05, 3.975]]))


def test_an_exception_up_there_leaves_the_weights():
    class Fails(Theirs):
        def training_step(self, batch, batch_idx):
            Theirs.every.append(None)
            if len(Theirs.every) == 2:
                raise InterruptedError
            return F.cross_entropy(self.network(batch[0]), batch[1])

    module = Fails(nn.ReLU())
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.raises(InterruptedError):
        fitted(module)
    assert all(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")
def test_a_dictionary_is_an_output_and_skipped_batches_stay_skipped():
    class Skips(Theirs):
        rate = 0.1

        def training_step(self, batch, batch_idx):
            Theirs.every.append(batch_idx)
            loss = F.cross_entropy(self.network(batch[0]), batch[1])
            return None if batch_idx == 1 else {"loss": loss, "extra": 1}

    module = Skips(nn.Tanh())
    fitted(module, accumulate_grad_batches=2, limit_train_batches=2)
    assert Theirs.every == [0, 1, 0, 1]
    weights = [parameter.detach().requires_grad_() for parameter in Skips(nn.Tanh()).parameters()]
    batch = next(iter(loader()))

    def half_the_gradient():
        logits = F.linear(F.linear(batch[0], weights[0], weights[1]).tanh(), weights[2], weights[3])
        return torch.autograd.grad(F.cross_entropy(logits, batch[1]) / 2, weights)

    start = [weight.detach().clone() for weight in weights]
    slopes = half_the_gradient()
    length = torch.cat([slope.flatten() for slope in slopes]).norm()
    with torch.no_grad():
        for weight, slope in zip(weights, slopes, strict=True):
            weight.add_(RHO * slope / length)
    expected = [weight - 0.1 * slope for weight, slope in zip(start, half_the_gradient(), strict=True)]
    torch.testing.assert_close([parameter.detach() for parameter in module.parameters()], expected, rtol=0, atol=1e-6)


def test_interval_leaves_the_steps_between_as_they_are():
    module = Theirs(nn.ReLU())
    Theirs.every = []
    quiet_trainer(SharpnessAwareMinimization(interval=3), max_epochs=2).fit(module, loader())
    assert [batch_idx for batch_idx, *_ in Theirs.every] == [0, 1, 2, 2, 3, 0, 1, 1, 2, 3]


def test_what_is_compiled_as_a_whole_is_not_compiled_anew_with_every_step():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    class Plain(Theirs):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.network(batch[0]), batch[1])

    torch._dynamo.reset()
    module = Plain(nn.ReLU())
    trainer = quiet_trainer(SharpnessAwareMinimization(), max_epochs=3)
    trainer.fit(torch.compile(module, backend=backend), loader())
    assert trainer.global_step == 12
    assert len(graphs) <= 2  # batch_idx becomes a variable at its second value


class Manual(Theirs):
    automatic_optimization = False

    def __init__(self):
        super().__init__(nn.ReLU())
        self.automatic_optimization = False


class Fetches(Theirs):
    def training_step(self, dataloader_iter):
        raise AssertionError


class Searches(Theirs):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@pytest.mark.parametrize(
    ("make", "number", "message"),
    [
        (Manual, 1, "automatic_optimization must be True with SharpnessAwareMinimization"),
        (lambda: Fetches(nn.ReLU()), 1, "training_step must take a batch with SharpnessAwareMinimization"),
        (lambda: Searches(nn.ReLU()), 1, "optimizer must not be LBFGS with SharpnessAwareMinimization"),
        (lambda: Theirs(nn.ReLU()), 2, "callbacks must hold one SharpnessAwareMinimization"),
    ],
)
def test_what_it_cannot_do_is_refused_before_the_first_step(make, number, message):
    Theirs.every = []
    callbacks = [SharpnessAwareMinimization(rho=0.1 * (index + 1)) for index in range(number)]
    with pytest.raises(SettingError, match=message):
        quiet_trainer(*callbacks).fit(make(), loader())
    assert not Theirs.every


def test_flattened_weights_are_refused():
    trainer = quiet_trainer()
    trainer._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(SettingError, match=r"must be ModelParallelStrategy \(FSDP2\) .* FSDPStrategy flattens"):
        SharpnessAwareMinimization().new_session(Run(trainer, Theirs(nn.ReLU())))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": -1}, "rho must be .* but is -1"),
        ({"rho": float("nan")}, "but is nan"),
        ({"eta": -0.1}, "eta must be .* but is -0.1"),
        ({"interval": 0}, "interval must be .* but is 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(SettingError, match=message):
        SharpnessAwareMinimization(**settings)


class Totals(Theirs):
    """Has a loss that isn't torch's."""

    def training_step(self, batch, batch_idx):
        return self.network(batch[0]).square().mean()


class Pairs(Theirs):
    """Has a tensor in its batch that isn't of samples."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [*batch, torch.zeros(3)]

    def training_step(self, batch, batch_idx):
        return super().training_step(batch[:2], batch_idx)


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize(
    ("module", "message"),
    [(Totals, "fraction must be 1 where the training step calls none of cross_entropy"), (Pairs, "one row a sample")],
)
def test_samples_that_can_not_be_chosen_are_refused_at_the_first_batch(module, message, interval):
    with pytest.raises(SettingError, match=message):
        quiet_trainer(SharpnessAwareMinimization(fraction=0.5, interval=interval)).fit(module(), loader())


class Carries(Theirs):
    """Adds a state of the batch before."""

    state = 0.0

    def training_step(self, batch, batch_idx):
        self.state = self.state + batch[0].detach()
        return super().training_step([batch[0] + self.state, *batch[1:]], batch_idx)


def test_a_step_that_fails_on_a_part_of_the_samples_is_refused():
    with pytest.raises(SettingError, match=r"fraction must be 1 where the training step fails on a part .*: The size"):
        quiet_trainer(SharpnessAwareMinimization(fraction=0.5)).fit(Carries(), loader())


class AssertsSize(Theirs):
    """Takes whole batches alone."""

    size = 0

    def training_step(self, batch, batch_idx):
        self.size = self.size or len(batch[0])
        if len(batch[0]) != self.size:
            raise AssertionError
        return F.cross_entropy(self.network(batch[0]), batch[1])


def test_a_step_that_asserts_the_size_of_its_batch_is_refused():
    with pytest.raises(SettingError, match=r"fails on a part of its batch's samples, .*: AssertionError$"):
        quiet_trainer(SharpnessAwareMinimization(fraction=0.5)).fit(AssertsSize(), loader())


class Plain(Theirs):
    """Has a batch that AUROC might have nothing to say of."""

    def training_step(self, batch, batch_idx):
        self.every.append((batch_idx, *batch))
        return F.cross_entropy(self.network(batch[0]), batch[1])


def test_the_second_pass_has_its_share_of_the_samples():
    Theirs.every = []
    trainer = quiet_trainer(SharpnessAwareMinimization(rho=1e-4, fraction=0.3), log_every_n_steps=1)
    trainer.fit(Plain(), loader())
    sizes = [len(inputs) for _, inputs, _ in Theirs.every]
    assert sizes == [BATCH_SIZE, math.ceil(0.3 * BATCH_SIZE)] * (len(sizes) // 2)
    assert abs(trainer.callback_metrics["sharpness/loss_rise"]) < 1e-3  # compared with the same samples


def test_only_norms_needs_some_with_weights():
    with pytest.raises(SettingError, match='only must be left out, but is "norm", and no normalization layer'):
        quiet_trainer(SharpnessAwareMinimization(only="norm"), max_steps=1).fit(Theirs(), loader())


def total_of_values(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none").sum() / BATCH_SIZE


def total_by_size(logits, labels):
    return F.cross_entropy(logits, labels, reduction="sum") / len(logits)


LOSSES_OF_SAMPLES = {
    "mean": F.cross_entropy,
    "half of the mean": lambda logits, labels: 0.5 * F.cross_entropy(logits, labels),
    "sum": functools.partial(F.cross_entropy, reduction="sum"),
    "sum of values over a constant": total_of_values,
    "sum over the batch size": total_by_size,
    "mean of values": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none").mean(),
}


class Reduced(LightningModule):
    """Has a loss of one's choice, on samples that are all equal."""

    def __init__(self, loss):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Linear(4, 3).double()
        self.loss = loss

    def train_dataloader(self):
        inputs = torch.linspace(-1, 1, 4, dtype=torch.float64).repeat(2 * BATCH_SIZE, 1)
        return DataLoader(TensorDataset(inputs, torch.ones(len(inputs), dtype=torch.long)), BATCH_SIZE)

    def training_step(self, batch, batch_idx):
        return self.loss(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02)


@pytest.mark.parametrize("loss", LOSSES_OF_SAMPLES.values(), ids=LOSSES_OF_SAMPLES)
def test_a_part_of_equal_samples_makes_the_step_of_all_whatever_the_reduction(loss):
    modules, rises = [], []
    for fraction in (1.0, 0.5):
        modules.append(Reduced(loss))
        trainer = quiet_trainer(SharpnessAwareMinimization(fraction=fraction), log_every_n_steps=1, max_epochs=2)
        trainer.fit(modules[-1])
        rises.append(trainer.callback_metrics["sharpness/loss_rise"])
    torch.testing.assert_close(*(list(module.parameters()) for module in modules), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*rises)


def test_a_sum_over_samples_beside_a_mean_is_refused_with_a_part_of_them():
    def both(logits, labels):
        return F.cross_entropy(logits, labels) + F.mse_loss(logits[:, 0], labels.double(), reduction="sum")

    with pytest.raises(SettingError, match=r"reduction must be the same in all losses .* with fraction below 1"):
        quiet_trainer(SharpnessAwareMinimization(fraction=0.5)).fit(Reduced(both))


def test_a_contrastive_loss_of_a_part_of_the_samples_is_refused():
    def contrastive(outputs, labels):
        return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))

    with pytest.raises(SettingError, match="fraction must be 1 where the training step compares the samples"):
        quiet_trainer(SharpnessAwareMinimization(fraction=0.5)).fit(Reduced(contrastive))


@pytest.mark.parametrize("divided", [True, False], ids=["over their number", "over a constant"])
def test_a_sum_over_positions_that_count_is_told_from_one_over_a_constant(divided):
    """Of sequences of very different lengths, of which the hardest are the longest."""

    class Sequences(LightningModule):
        sizes: ClassVar[list[float]] = []

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.network = nn.Embedding(5, 3)

        def training_step(self, batch, batch_idx):
            values = F.cross_entropy(self.network(batch[0]).mT, batch[1], reduction="none")  # (N, T)
            loss = values.sum() / ((batch[1] != -100).sum() if divided else 7)
            loss.register_hook(lambda gradient: self.sizes.append(gradient.item()))
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    inputs = torch.arange(24).view(4, 6) % 5
    labels = torch.where(torch.arange(6) < torch.tensor([[6], [6], [1], [1]]), inputs % 3, -100)
    Sequences.sizes.clear()
    trainer = quiet_trainer(SharpnessAwareMinimization(fraction=0.5), max_epochs=2)
    trainer.fit(Sequences(), DataLoader(TensorDataset(inputs, labels), 4))
    assert Sequences.sizes[-1] == (1 if divided else 2)
