"""Averages where manual optimization takes several steps in a batch, as the epochs within PPO's do."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch.optim.lr_scheduler import ExponentialLR

from lightning_reg.callbacks import (
    ExponentialMovingAverage,
    LatestWeightAverage,
    Lookahead,
    NonNegative,
    StochasticWeightAverage,
)
from tests.callbacks.averaged import Normed, equal, fit, state
from tests.callbacks.test_stochastic_weight_average import Rates
from tests.conformance.problem import BATCHES, resumable_loader, scaler

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
STEPS = 4  # in each batch
EPOCHS = 3


class Inner(Normed):
    """Steps several times on each batch, clamps its weights after each step, and remembers them."""

    automatic_optimization = False
    use_pl_optimizer = True

    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=self.use_pl_optimizer)
        for index in range(STEPS):
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch, batch_idx, index))
            optimizer.step()
            with torch.no_grad():
                for weight in self.parameters():
                    weight.clamp_(-0.3, 0.3)
            self.seen.append([weight.detach().clone() for weight in self.parameters()])

    def loss(self, batch, batch_idx, index):
        return F.cross_entropy(self(batch[0]), batch[1])


class Unannounced(Inner):
    use_pl_optimizer = False


def moving(seen, decay):
    average = seen[0]
    for weights in seen[1:]:
        average = [decay * held + (1 - decay) * weight for held, weight in zip(average, weights, strict=True)]
    return average


def mean(seen):
    return [torch.stack(weights).mean(0) for weights in zip(*seen, strict=True)]


@pytest.mark.parametrize("make", [Inner, Unannounced])
@pytest.mark.parametrize(
    ("average", "expected"),
    [
        (lambda: ExponentialMovingAverage(decay=0.8, warmup=False), lambda seen: moving(seen, 0.8)),
        (
            lambda: ExponentialMovingAverage(half_life=6, every_n_steps=3, start_step=5, warmup=False),
            lambda seen: moving(seen[7::3], 0.5**0.5),
        ),
        (lambda: StochasticWeightAverage(start=0, interval="step", every_n=3), lambda seen: mean(seen[2::3])),
        (lambda: StochasticWeightAverage(start=0), lambda seen: mean(seen[BATCHES * STEPS - 1 :: BATCHES * STEPS])),
        (lambda: LatestWeightAverage(window=5, every_n_steps=3), lambda seen: mean(seen[2::3][-5:])),
    ],
    ids=["ema", "ema in periods", "swa in steps", "swa in epochs", "lawa"],
)
def test_averages_take_the_weights_that_every_step_leaves(average, expected, make):
    module, _ = fit(average(), module=make())
    torch.testing.assert_close(list(module.parameters()), expected(module.seen), rtol=0, atol=1e-6)


def test_several_averages_take_what_constraints_and_lookahead_leave():
    averages = ExponentialMovingAverage(decay=0.8, warmup=False), LatestWeightAverage(window=3, every_n_steps=1)
    module, _ = fit(*averages, NonNegative(include=("net.0.*",)), Lookahead(k=3), module=Inner())
    torch.testing.assert_close(list(module.parameters()), moving(module.seen, 0.8), rtol=0, atol=1e-6)
    assert [average.updates for average in averages] == [EPOCHS * BATCHES * STEPS] * 2
    latest = averages[1].last_result.weights["net.0.weight"]
    torch.testing.assert_close(latest, mean(module.seen[-3:])[0], rtol=0, atol=1e-6)


class Two(Normed):
    """Steps its two optimizers in a given order."""

    automatic_optimization = False

    def __init__(self, order):
        super().__init__()
        self.order = order

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        for index in self.order:
            optimizers[index].zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            optimizers[index].step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[index].parameters(), lr=0.1) for index in (0, 3)]


@pytest.mark.parametrize("order", [(0, 1), (0, 0, 0, 1), (1, 0, 0, 0), (0, 1, 0, 1)])
def test_several_optimizers_that_step_in_one_batch_count_as_one_step(order):
    average = ExponentialMovingAverage()
    fit(average, module=Two(order), max_epochs=1)
    assert average.updates == BATCHES


def test_a_step_within_a_batch_that_the_scaler_skips_does_not_count():
    class Overflows(Inner):
        def loss(self, batch, batch_idx, index):
            return super().loss(batch, batch_idx, index) * (torch.inf if (batch_idx, index) in ((1, 2), (2, 3)) else 1)

    average = ExponentialMovingAverage()
    plugins = [MixedPrecision("16-mixed", "cpu", scaler())]
    fit(average, module=Overflows(), max_epochs=1, plugins=plugins)
    assert average.updates == STEPS * BATCHES - 2


def test_steps_in_validation_are_none_of_training():
    class Adapts(Inner):
        def validation_step(self, batch, batch_idx):
            with torch.enable_grad():
                self.training_step(batch, batch_idx)

    average = ExponentialMovingAverage()
    with pytest.warns(UserWarning, match="weights were changed in validation"):
        fit(average, module=Adapts(), inference_mode=False)
    assert average.updates == EPOCHS * BATCHES * STEPS


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization:UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: ExponentialMovingAverage(every_n_steps=7),
        lambda: StochasticWeightAverage(start=0, interval="step", every_n=7, lr=0.05, lr_low=0.01),
        lambda: LatestWeightAverage(window=2, every_n_steps=7),
    ],
)
def test_resumed_is_uninterrupted(make, tmp_path):
    def run(**how):
        saves = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, enable_version_counter=False)
        return state(fit(make(), saves, module=Inner(), train=resumable_loader, enable_checkpointing=True, **how)[0])

    whole = run()
    (tmp_path / f"step={8 * STEPS}.ckpt").rename(tmp_path / "start.ckpt")
    assert equal(run(ckpt_path=tmp_path / "start.ckpt"), whole)


def test_a_half_life_in_epochs_is_one_in_batches():
    average = ExponentialMovingAverage(half_life=0.5, half_life_unit="epoch", warmup=False)
    module, _ = fit(average, module=Inner())
    expected = moving(module.seen[STEPS - 1 :: STEPS], 0.5 ** (2 / BATCHES))
    torch.testing.assert_close(list(module.parameters()), expected, rtol=0, atol=1e-6)


class Schedules(Inner):
    """Steps a scheduler between a batch's first step and its second."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [ExponentialLR(optimizer, 0.9)]

    def loss(self, batch, batch_idx, index):
        if index == 1:
            self.lr_schedulers().step()
        return super().loss(batch, batch_idx, index)


def test_the_rate_is_that_of_the_average_at_every_step():
    rates = Rates()
    fit(StochasticWeightAverage(start=0, lr=0.02, anneal_epochs=0), rates, module=Schedules())
    assert rates.rates == [0.02] * EPOCHS * BATCHES * STEPS


def test_cycles_in_steps_end_with_a_snapshot_and_those_in_epochs_go_by_batches():
    rates = Rates()
    fit(StochasticWeightAverage(start=0, lr=0.02, lr_low=0.01, interval="step", every_n=5), rates, module=Inner())
    cycle = [0.018, 0.016, 0.014, 0.012, 0.01]
    assert rates.rates == pytest.approx((cycle * 15)[: EPOCHS * BATCHES * STEPS])
    rates = Rates()
    fit(StochasticWeightAverage(start=0, lr=0.02, lr_low=0.0), rates, module=Inner())
    falling = [0.02 * (1 - (batch + 1) / BATCHES) for batch in range(BATCHES) for _ in range(STEPS)]
    assert rates.rates == pytest.approx(falling * EPOCHS)
