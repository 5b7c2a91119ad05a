"""Ways to train that a technique must neither disturb nor be misled by, each in a few lines."""

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import (
    ActivationStats,
    ActivityPenalty,
    BatchMixing,
    ConfidencePenalty,
    ExponentialMovingAverage,
    GeneralizationGap,
    GradientClipping,
    GradientMonitor,
    InputGradientPenalty,
    JacobianPenalty,
    L1Penalty,
    L2Penalty,
    L2SPPenalty,
    LabelSmoothing,
    MaxNorm,
    RDrop,
    SharpnessAwareMinimization,
    SnapshotEnsemble,
    StochasticWeightAverage,
    WiSEFT,
)
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.callbacks.averaged import Normed
from tests.conformance import by_hand
from tests.conformance.problem import BATCHES, LEARNING_RATE, SomebodysModule, loader, network, weights_of
from tests.helpers import quiet_trainer

EXACT = {"rtol": 0, "atol": 1e-13}  # of float64: sums of a few hundred terms, over at most six steps


def fit(module, *callbacks, train=None, **settings):
    trainer = quiet_trainer(*callbacks, **settings)
    trainer.fit(module, train or loader(), loader())
    return trainer


class Unoptimized(SomebodysModule):
    """Only to be run, as for statistics of its data."""

    seen = 0

    def training_step(self, batch, batch_idx):
        self.seen += 1

    def configure_optimizers(self):
        return None


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_module_without_an_optimizer_sees_all_batches_beside_a_monitor():
    module = Unoptimized()
    fit(module, GradientMonitor(), max_epochs=2)
    assert module.seen == 2 * BATCHES
    with pytest.raises(SettingError, match="configure_optimizers must return an optimizer with SnapshotEnsemble"):
        fit(Unoptimized(), SnapshotEnsemble(cycles=2))


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_what_would_act_on_a_module_without_an_optimizer_says_that_it_does_nothing():
    with pytest.warns(
        UserWarning, match="L2Penalty, ConfidencePenalty had no effect: configure_optimizers returned None"
    ):
        fit(Unoptimized(), L2Penalty(weight=0.1), ConfidencePenalty(weight=0.1), GradientMonitor())


@pytest.mark.parametrize(
    ("technique", "said"),
    [
        (
            L2Penalty(weight=0.1, include=["*.frozen.*"]),
            r"on what include selects, .* none of it was trained: .*frozen.weight",
        ),
        (
            GradientClipping(max_norm=0.1, include=["*.frozen.*"]),
            r"on what include selects, .*frozen.weight, .*frozen.bias",
        ),
        (MaxNorm(max_norm=0.1, include=["*.frozen.*"]), r"on what include selects, .* none of it was trained"),
        (ActivityPenalty(l2=0.1, include=["*.frozen"]), r": its term depends on no weight that was trained"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_acts_on_frozen_layers_alone_says_that_it_does_nothing(technique, said):
    with pytest.warns(
        UserWarning, match=rf"{type(technique).__name__} had no effect{'' if said[0] == ':' else ' '}{said}"
    ):
        fit(SomebodysModule(), technique, max_epochs=2)


@pytest.mark.parametrize(
    "technique", [L2Penalty(weight=0.1, include=["*.head.*"]), ActivityPenalty(l2=0.1, include=["*.head"])]
)
def test_what_acts_on_layers_that_are_frozen_for_a_while_says_nothing(technique, recwarn):
    class Thaws(SomebodysModule):
        def on_train_epoch_start(self):
            self.network.head.requires_grad_(self.current_epoch > 0)

    fit(Thaws(), technique, max_epochs=2)
    assert not [warning for warning in recwarn if "had no effect" in str(warning.message)]


def test_an_optimizer_that_the_trainer_does_not_know_is_refused_rather_than_ending_the_epoch():
    class Steps(SomebodysModule):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            optimizer_closure()
            self.trainer.precision_plugin._after_closure(self, torch.optim.SGD(self.parameters(), lr=0.1))

    with pytest.raises(SettingError, match="configure_optimizers must return every optimizer that steps"):
        fit(Steps(), GradientClipping(max_norm=1.0))


class Embeds(SomebodysModule):
    """Rows that a batch looks up several times, whose gradients aren't added up yet."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Embedding(5, 6, sparse=True), nn.Flatten(), nn.Linear(24, 3))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def test_a_monitor_leaves_sparse_gradients_as_they_are():
    rows = torch.randint(5, (48, 4), generator=torch.Generator().manual_seed(2))
    data = DataLoader(TensorDataset(rows, torch.arange(48) % 3), batch_size=24)

    def trained_by_hand(change):
        model = Embeds().network
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for inputs, labels in [*data] * 4:
            F.cross_entropy(model(inputs), labels).backward()
            model[0].weight.grad = change(model[0].weight.grad)
            optimizer.step()
            optimizer.zero_grad()
        return model[0].weight

    module = Embeds()
    quiet_trainer(GradientMonitor(), max_epochs=4, log_every_n_steps=1).fit(module, data, data)
    assert torch.equal(module.network[0].weight, trained_by_hand(lambda gradient: gradient))
    # Adding up what a row has before the step rounds differently, so that these data would show it.
    assert not torch.equal(module.network[0].weight, trained_by_hand(torch.Tensor.coalesce))


def test_what_a_weight_is_computed_of_is_not_shrunk_to_zero():
    def computed(model):
        nn.utils.parametrizations.weight_norm(model.head)

    with pytest.raises(SettingError, match="or proximal be False, with L1Penalty") as refused:
        fit(SomebodysModule(prepare=computed), L1Penalty(weight=0.1, proximal=True))
    names = str(refused.value).removeprefix("exclude must name ").partition(", or proximal")[0].split(", ")
    fit(SomebodysModule(prepare=computed), L1Penalty(weight=0.1, proximal=True, exclude=names), max_epochs=1)


class AccumulatesItself(SomebodysModule):
    """Two batches a step, by the module's own hooks rather than by a setting of the trainer."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if batch_idx % 2:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        if batch_idx % 2 == 0:
            optimizer.zero_grad()


def test_sharpness_is_that_of_all_batches_that_a_module_accumulates_itself():
    module = AccumulatesItself()
    fit(module, SharpnessAwareMinimization(rho=0.5), max_epochs=2, precision="64-true")

    model, batches = network().double(), list(loader()) * 2
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)

    def backward(window):
        optimizer.zero_grad()
        for inputs, labels in window:
            F.cross_entropy(model(inputs.double()), labels).backward()

    for window in zip(batches[::2], batches[1::2], strict=True):
        backward(window)
        by_hand.sharpness(0.5)(model, functools.partial(backward, window))
        optimizer.step()
    torch.testing.assert_close(weights_of(module.network), weights_of(model), **EXACT)


class FocalByNLL(SomebodysModule):
    def training_step(self, batch, batch_idx):
        log_probabilities = self.network(batch[0]).log_softmax(1)
        return F.nll_loss((1 - log_probabilities.exp()) ** 2 * log_probabilities, batch[1])


@pytest.mark.parametrize("technique", [LabelSmoothing(smoothing=0.1), ConfidencePenalty(weight=0.1), RDrop(weight=1.0)])
def test_a_focal_loss_of_log_probabilities_is_no_cross_entropy(technique):
    with pytest.raises(SettingError, match="nll_loss must take log-probabilities with"):
        fit(FocalByNLL(), technique)


class ZeroedPadding(SomebodysModule):
    def training_step(self, batch, batch_idx):
        targets = batch[1].clone()
        targets[0] = -100
        return F.nll_loss(self.network(batch[0]).log_softmax(1) * (targets != -100)[:, None], targets)


def test_what_does_not_count_needs_no_probabilities():
    smoothed, plain = ZeroedPadding(), ZeroedPadding()
    fit(smoothed, LabelSmoothing(smoothing=0.1), max_epochs=1)
    fit(plain, max_epochs=1)
    assert not torch.equal(smoothed.network.head.weight, plain.network.head.weight)


class DifferentiatesByHand(SomebodysModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        weights = [parameter for parameter in self.parameters() if parameter.requires_grad]
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            weight.grad = gradient
        self.optimizers().step()


class BackwardByHand(DifferentiatesByHand):
    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(F.cross_entropy(self.network(batch[0]), batch[1]))
        self.optimizers().step()


@pytest.mark.parametrize("kind", [DifferentiatesByHand, BackwardByHand])
def test_mixed_losses_can_be_differentiated_by_hand(kind):
    module = kind()
    fit(module, BatchMixing(Mixup(alpha=0.7, prob=0.8), seed=0), max_epochs=1, precision="64-true")

    model, mix = network().double(), by_hand.mixup(per_sample=False).mix
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    model.rank = model.epoch = 0
    for model.batch, (inputs, labels) in enumerate(loader()):
        mixed, loss_of = mix(model, inputs.double(), labels)
        optimizer.zero_grad()
        loss_of(model(mixed)).backward()
        optimizer.step()
    torch.testing.assert_close(weights_of(module.network), weights_of(model), **EXACT)


def test_batches_of_one_sample_are_told():
    with pytest.warns(UserWarning, match="BatchMixing has no effect: no batch has a second sample"):
        fit(SomebodysModule(), BatchMixing(Mixup(alpha=1.0)), train=loader(batch_size=1), max_epochs=1)


class LoadsLate(SomebodysModule):
    """Pretrained weights, all ones, that are loaded when everything else is ready."""

    def on_train_start(self):
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(1.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_weights_that_are_loaded_in_on_train_start_are_where_training_starts():
    trainer = fit(LoadsLate(), L2SPPenalty(weight=1.0), max_epochs=1, log_every_n_steps=1)
    assert trainer.callback_metrics["penalty/l2_sp"] == 0
    module = LoadsLate()
    fit(module, WiSEFT(alpha=0.5), max_epochs=1)
    assert all(bool((parameter == 1).all()) for parameter in module.parameters() if parameter.requires_grad)


class SkipsFirst(Normed):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 0 else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_skipped_batch_is_no_sign_of_a_network_that_is_not_called():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*statistics in .* are those of the trained weights")
        fit(SkipsFirst(), average := StochasticWeightAverage(start=0, buffers="recompute"), max_epochs=2)
    assert average.last_result.updates == 2


class SubclassOfLightnings(BoringModel):
    pass


@pytest.mark.parametrize("make", [BoringModel, SubclassOfLightnings], ids=["Lightning's", "a subclass"])
def test_what_a_demonstration_module_validates_is_measured(make):
    trainer = quiet_trainer(GeneralizationGap(verbose=False), max_epochs=1, limit_train_batches=2, limit_val_batches=2)
    trainer.fit(make())
    assert trainer.callback_metrics["gap/x"].isfinite()


def test_clipping_that_is_set_on_the_instance_is_seen():
    module = SomebodysModule()
    module.configure_gradient_clipping = lambda *_, **__: nn.utils.clip_grad_norm_(module.parameters(), 0.01)
    with pytest.raises(SettingError, match="configure_gradient_clipping changes gradients itself"):
        fit(module, GradientClipping(max_norm=1.0))


def test_training_batches_that_validation_cannot_take_are_refused_by_name():
    class TwoViews(SomebodysModule):
        def training_step(self, batch, batch_idx):
            view, _, labels = batch
            return F.cross_entropy(self.network(view), labels)

    inputs, labels = loader().dataset.tensors
    views = DataLoader(TensorDataset(inputs, inputs, labels), batch_size=8)
    with pytest.raises(SettingError, match=r"validation_step must take batches of the training data .* RuntimeError"):
        fit(TwoViews(), GeneralizationGap(verbose=False), train=views)


@pytest.mark.parametrize("technique", [StochasticWeightAverage(start=10), SnapshotEnsemble(cycles=5)])
@pytest.mark.parametrize("batches", [1, 3])
def test_settings_of_a_long_run_can_be_tried_out(technique, batches):
    assert fit(Normed(), technique, fast_dev_run=batches).global_step == batches


class DrawsWhileLoading(SomebodysModule):
    drawn: list[float]

    def val_dataloader(self):
        torch.rand(())
        return loader()

    def on_train_epoch_end(self):
        self.drawn = [*getattr(self, "drawn", []), torch.rand(()).item()]


def test_an_extra_validation_leaves_the_random_numbers_of_reloading_alone():
    def drawn(*callbacks):
        module = DrawsWhileLoading()
        torch.manual_seed(0)
        quiet_trainer(*callbacks, max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(module, loader())
        return module.drawn

    assert drawn(ExponentialMovingAverage(decay=0.5, validate="both")) == drawn()


class Attention(nn.Module):
    """Attention by torch's fused function, which has no second derivative."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(2, 8), nn.Linear(8, 3)

    def forward(self, inputs):
        tokens = self.embed(inputs.view(-1, 3, 2)).view(-1, 3, 2, 4).transpose(1, 2)
        return self.head(F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).flatten(2).mean(1))


@pytest.mark.parametrize("technique", [InputGradientPenalty(weight=0.1), JacobianPenalty(weight=0.1)])
def test_fused_attention_can_be_differentiated_twice(technique):
    def trained(*callbacks):
        module = SomebodysModule()
        torch.manual_seed(0)
        module.network = Attention()
        fit(module, *callbacks, max_epochs=1)
        return module.network.embed.weight

    assert not torch.allclose(trained(technique), trained())


class PerSample(SomebodysModule):
    """Gradients of each sample, by torch.func."""

    def training_step(self, batch, batch_idx):
        weights = dict(self.network.named_parameters())

        def loss(weights, inputs, label):
            logits = torch.func.functional_call(self.network, weights, (inputs[None],))
            return F.cross_entropy(logits, label[None])

        return torch.func.vmap(loss, (None, 0, 0))(weights, *batch).mean()


def test_what_runs_within_a_transform_is_left_out_by_monitors_and_refused_by_terms():
    with pytest.warns(UserWarning, match="ActivationStats watches modules of which none ran"):
        fit(PerSample(), ActivationStats(), max_epochs=1, log_every_n_steps=1)
    for technique in (ConfidencePenalty(weight=0.1), JacobianPenalty(weight=0.1)):
        with pytest.raises(SettingError, match="must be computed outside of torch"):
            fit(PerSample(), technique)
    with pytest.raises(SettingError, match="runs, can't be watched"):
        fit(PerSample(), ActivityPenalty(l1=0.1))
