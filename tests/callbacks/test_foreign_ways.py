"""What other people's projects do that a technique has to follow, or refuse."""

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from lightning_reg.callbacks import (
    ActivityPenalty,
    AdversarialTraining,
    BatchMixing,
    CautiousWeightDecay,
    ConfidencePenalty,
    ExponentialMovingAverage,
    GradientCentralization,
    GradientClipping,
    GradientMonitor,
    GradientNoise,
    GroupLassoPenalty,
    L1Penalty,
    L2Penalty,
    L2SPPenalty,
    Lookahead,
    MaxNorm,
    RDrop,
    RegMixup,
    RegularizationAudit,
    SharpnessAwareMinimization,
    UnitNorm,
)
from lightning_reg.functional.loss.output_penalties import entropy
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.callbacks.foreign import Manual, assert_same, fit
from tests.conformance.by_hand import l2
from tests.conformance.problem import (
    Setting,
    SomebodysModule,
    Textbook,
    loader,
    network,
    samples,
    textbook_loop,
    weights_of,
)
from tests.helpers import quiet_trainer

# Optimizers.


class Raw(Manual):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        self.manual_backward(F.cross_entropy(self.network(batch[0]), batch[1]))
        optimizer.step()


STEPS_KNOWN = {
    "penalty": lambda: L2Penalty(weight=0.1),
    "clipping": GradientClipping,
    "monitor": GradientMonitor,
    "noise": GradientNoise,
    "decay": lambda: CautiousWeightDecay(weight=0.1),
}


@pytest.mark.parametrize("make", STEPS_KNOWN.values(), ids=STEPS_KNOWN)
def test_optimizers_that_step_behind_lightnings_back_are_refused(make):
    with pytest.raises(SettingError, match=r"use_pl_optimizer must be True in self\.optimizers"):
        fit(Raw(), make())


class StepsBare(SomebodysModule):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer_closure()
        optimizer.optimizer.step()


class ForgetsTheClosure(SomebodysModule):
    def configure_optimizers(self):
        class Forgets(torch.optim.SGD):
            def step(self, closure=None):
                return super().step()

        return Forgets(self.parameters(), lr=0.1)


@pytest.mark.parametrize("make", [*STEPS_KNOWN.values(), Lookahead], ids=[*STEPS_KNOWN, "lookahead"])
@pytest.mark.parametrize("module", [StepsBare, ForgetsTheClosure])
def test_under_automatic_optimization_the_refusal_is_of_the_step_not_of_self_optimizers(module, make):
    with pytest.raises(SettingError, match=r"^optimizer_step must call step of .*, and .* its closure, with"):
        fit(module(), make())


class ReturnsANumber(SomebodysModule):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx).item()


READ_THE_LOSS = {
    "sharpness": SharpnessAwareMinimization,
    "sharpness of a part": lambda: SharpnessAwareMinimization(fraction=0.5),
    "term": lambda: ConfidencePenalty(weight=0.1),
    "attack": lambda: AdversarialTraining(eps=0.1),
    "mixing": lambda: BatchMixing(Mixup(alpha=0.4)),
    "both halves": RegMixup,
    "copies": lambda: RDrop(weight=1.0),
}


@pytest.mark.parametrize("make", READ_THE_LOSS.values(), ids=READ_THE_LOSS)
def test_a_number_in_place_of_the_loss_is_answered_by_lightning(make):
    with pytest.raises(MisconfigurationException, match="`training_step` must return a Tensor"):
        fit(ReturnsANumber(), make())


def test_gradients_that_were_thrown_away_bring_no_penalty():
    """Lightning documents this way of stepping every other batch."""

    class EveryOther(SomebodysModule):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            if batch_idx % 2:
                optimizer.step(closure=optimizer_closure)
            else:
                optimizer_closure()

    module, expected = EveryOther(), EveryOther()
    fit(module, L2Penalty(weight=0.5), max_epochs=1)
    optimizer = torch.optim.SGD(
        [parameter for parameter in expected.parameters() if parameter.requires_grad], lr=0.1, momentum=0.9
    )
    for index, (inputs, labels) in enumerate(loader()):
        if index % 2:
            optimizer.zero_grad()
            (F.cross_entropy(expected.network(inputs), labels) + 10 * l2(expected.network)).backward()
            optimizer.step()
    assert_same(weights_of(module), weights_of(expected))


def test_new_optimizers_are_held_on_to():
    class Renews(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.strategy.setup_optimizers(trainer)

    module = SomebodysModule()
    shown = fit(module, Renews(), MaxNorm(max_norm=0.2), GradientMonitor())
    assert module.network.head.weight.detach().norm(dim=1).max() <= 0.2 + 1e-6
    assert shown["grad/nonfinite_steps"] == 0


def test_fused_optimizer_whose_gradients_were_unscaled_by_hand():
    class Unscales(Manual):
        def before(self, optimizer):
            self.trainer.precision_plugin.scaler.unscale_(optimizer.optimizer)

    module = Unscales(fused=True)
    setting = Setting("16-mixed", fused=True)
    shown = fit(module, L2Penalty(weight=0.05), GradientClipping(max_norm=0.1), GradientMonitor(), setting=setting)

    def clip(model, *_):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    by_hand = Textbook(term=lambda model, *_: l2(model), on_gradients=clip)
    expected = textbook_loop(setting, by_hand).weights[-1]
    assert_same(weights_of(module), expected, atol=setting.tolerance(weights_of(network()), expected))
    assert shown["grad/norm_clipped"] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("algorithm", ["norm", "value", "adaptive", "percentile", "zscore"])
def test_clipping_hides_no_overflow_from_a_fused_optimizer(algorithm):
    class Overflows(SomebodysModule):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss + 1e38 * 1e5 * self.network.first.bias.sum() if batch_idx == 2 else loss

    ends = []
    for fused in (False, True):
        module = Overflows(fused=fused)
        fit(module, GradientClipping(algorithm=algorithm), setting=Setting("16-mixed", fused=fused), max_epochs=1)
        ends.append(weights_of(module))
    assert_same(*ends, atol=1e-5)


def test_a_learning_rate_finder_leaves_the_starting_point(tmp_path):
    class Finds(SomebodysModule):
        lr = 0.1

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    l2_sp = L2SPPenalty(weight=0.1)
    finder = LearningRateFinder(num_training_steps=5, update_attr=False)
    trainer = Setting().trainer([finder, l2_sp], enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(Finds(), loader(), loader())
    start = l2_sp.state_dict()["starts"]["network.first.weight"]
    assert torch.equal(start, network().first.weight)


class FindsInTheMiddle(LearningRateFinder):
    """Searches at an epoch, as Lightning documents it: with our hooks on the optimizer, but without our callbacks."""

    def on_fit_start(self, *args):
        pass

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 0:
            self.lr_find(trainer, module)


@pytest.mark.parametrize(
    "make",
    [
        *STEPS_KNOWN.values(),
        lambda: Lookahead(k=2),
        lambda: ExponentialMovingAverage(decay=0.9),
        SharpnessAwareMinimization,
        lambda: MaxNorm(max_norm=0.5),
    ],
    ids=[*STEPS_KNOWN, "lookahead", "average", "sharpness", "constraint"],
)
def test_a_learning_rate_finder_in_the_middle_of_a_fit_is_not_trained_on(make, tmp_path):
    class Finds(SomebodysModule):
        lr = 0.1

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    finder = FindsInTheMiddle(num_training_steps=5, update_attr=False, early_stop_threshold=None)
    weights = []
    for finders in ([], [finder]):
        module = Finds()
        Setting().trainer([make(), *finders], default_root_dir=tmp_path).fit(module, loader(), loader())
        weights.append(weights_of(module))
    assert len(finder.optimal_lr.results["lr"]) == 5
    assert_same(*weights, atol=0)


class Looks(SomebodysModule):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 4, sparse=True)

    def training_step(self, batch, batch_idx):
        return self.table(torch.tensor([1, 1, 2])).square().sum()

    def configure_optimizers(self):
        return torch.optim.SparseAdam(self.table.parameters(), lr=0.1)


def test_sparse_optimizers_are_measured_and_clipped_but_not_penalized():
    alone, watched, clipped = Looks(), Looks(), Looks()
    watched.load_state_dict(alone.state_dict())
    clipped.load_state_dict(alone.state_dict())
    fit(alone)
    fit(watched, GradientMonitor(), GradientNoise())
    assert_same(weights_of(alone), weights_of(watched), atol=0)
    for algorithm in ("norm", "value", "adaptive"):
        extra = {"exclude_head": False, "exclude_norm_and_bias": False} if algorithm == "adaptive" else {}
        shown = fit(clipped, GradientMonitor(), GradientClipping(algorithm=algorithm, **extra))
        assert shown["grad/norm_clipped"] <= shown["grad/norm"]
    with pytest.raises(SettingError, match="optimizer must not be SparseAdam with L2Penalty"):
        fit(Looks(), L2Penalty(weight=0.1))


# Weights.


def test_weights_without_a_shape_are_refused():
    class Lazy(SomebodysModule):
        def __init__(self):
            super().__init__()
            self.lazy = nn.LazyLinear(3)

        def configure_optimizers(self):
            return torch.optim.SGD(self.network.parameters(), lr=0.1)

    for technique in (MaxNorm(), L2SPPenalty(weight=0.1), GradientMonitor(layers=("*",))):
        with pytest.raises(SettingError, match=r"lazy\.weight must have a shape when the fit starts"):
            fit(Lazy(), technique)


class LazyFirst(SomebodysModule):
    """Has a layer whose weights have no shape before the first batch."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.LazyLinear(8, bias=False), nn.Tanh(), nn.Linear(8, 3))


def test_weights_that_get_a_shape_in_the_sanity_check_are_averaged_and_audited(capsys):
    trained = []
    for callbacks in ([], [ExponentialMovingAverage(decay=0.0), RegularizationAudit()]):
        torch.manual_seed(0)
        module = LazyFirst()
        quiet_trainer(*callbacks).fit(module, loader(), loader())
        trained.append(weights_of(module))
    assert_same(*trained, atol=0)
    assert "Regularization of LazyFirst: 75 trainable weights on" in capsys.readouterr().out


def test_weights_without_a_shape_are_not_counted(capsys):
    quiet_trainer(RegularizationAudit(), num_sanity_val_steps=0).fit(LazyFirst(), loader(), loader())
    assert "Regularization of LazyFirst: 27 trainable weights and those of lazy layers" in capsys.readouterr().out


def test_grouped_convolutions_whose_units_lie_across_groups_are_refused():
    class Depthwise(SomebodysModule):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 3, groups=4)

    for technique in (MaxNorm(group="input"), GroupLassoPenalty(weight=0.1, group="input")):
        with pytest.raises(SettingError, match=r"exclude must name conv\.weight, a grouped convolution"):
            fit(Depthwise(), technique)


def test_units_of_a_single_weight_are_not_centralized():
    class Narrow(SomebodysModule):
        def __init__(self):
            super().__init__()
            self.narrow = nn.Linear(1, 6)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.network(self.narrow(batch[0][:, :1])), batch[1])

    module = Narrow()
    start = module.narrow.weight.detach().clone()
    fit(module, GradientCentralization())
    assert not torch.equal(module.narrow.weight, start)


@pytest.mark.parametrize("sparse", [True, False])
def test_the_gradient_of_an_embedding_is_centralized_by_row(sparse):
    class Looks(SomebodysModule):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(8, 6, sparse=sparse)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.network(batch[0] + self.table(batch[1])), batch[1])

    module = Looks()
    start = module.table.weight.detach().clone()
    fit(module, GradientCentralization(include=("table.*",)))
    assert not module.table.weight[:3].equal(start[:3])
    torch.testing.assert_close(module.table.weight.sum(1), start.sum(1))


def test_constraints_hold_after_a_proximal_step_whatever_the_order():
    for order in ([0, 1], [1, 0]):
        callbacks = [UnitNorm(), L1Penalty(weight=0.05, proximal=True)]
        module = SomebodysModule()
        fit(module, *(callbacks[index] for index in order))
        lengths = module.network.head.weight.detach().norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones(3))


def test_a_single_pattern_may_be_text_and_anything_else_is_refused():
    assert L2Penalty(weight=0.1, include="head.*").include == ("head.*",)
    with pytest.raises(SettingError, match="include must be globs over names, but is 3"):
        L2Penalty(weight=0.1, include=3)
    for bad in ("1e-4", None, True):
        with pytest.raises(SettingError, match=f"weight must be a number, but is {bad!r}"):
            L2Penalty(weight=bad)
    with pytest.raises(SettingError, match="schedule must be a StrengthSchedule, but is 'linear'"):
        L2Penalty(weight=0.1, schedule="linear")


# Terms of the loss.


def test_what_is_evaluated_without_a_gradient_or_ignored_is_no_prediction():
    class Measures(SomebodysModule):
        def training_step(self, batch, batch_idx):
            logits = self.network(batch[0])
            with torch.no_grad():
                F.cross_entropy(logits, batch[1])
            labels = torch.where(batch[1] == 0, -100, batch[1])
            return F.cross_entropy(logits, labels)

    shown = fit(Measures(), ConfidencePenalty(weight=1.0), max_epochs=1, limit_train_batches=1)
    inputs, labels = (part[:8] for part in samples().tensors)
    assert 0 < (labels == 0).sum() < 8
    expected = -entropy(network()(inputs[labels != 0]))
    assert shown["penalty/confidence"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_schedule_that_begins_at_zero_hides_no_missing_prediction():
    from lightning_reg.callbacks import StrengthSchedule

    class Regresses(SomebodysModule):
        def training_step(self, batch, batch_idx):
            return self.network(batch[0]).square().mean()

    with pytest.raises(SettingError, match="calls neither cross_entropy nor nll_loss"):
        fit(Regresses(), ConfidencePenalty(weight=1.0, schedule=StrengthSchedule()), limit_train_batches=1)


def test_reentrant_checkpointing_and_packed_sequences_are_refused():
    class Reentrant(SomebodysModule):
        def training_step(self, batch, batch_idx):
            inputs = batch[0].clone().requires_grad_()
            features = checkpoint(self.network.features, inputs, use_reentrant=True)
            return F.cross_entropy(self.network.head(features), batch[1])

    class Packs(SomebodysModule):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(2, 3, batch_first=True)

        def training_step(self, batch, batch_idx):
            return self.rnn(pack_padded_sequence(batch[0].view(-1, 3, 2), [3] * 8, batch_first=True))[0].data.sum()

    class HandsOn(nn.Module):
        def forward(self, packed):
            return packed

    class PacksFirst(SomebodysModule):
        def __init__(self):
            super().__init__()
            self.same = HandsOn()

        def training_step(self, batch, batch_idx):
            packed = self.same(pack_padded_sequence(batch[0].view(-1, 3, 2), [3] * 8, batch_first=True))
            return self.network(packed.data.reshape(8, 6)).square().mean()

    with pytest.raises(SettingError, match="reentrant checkpointing runs, can't be watched"):
        fit(Reentrant(), ActivityPenalty(l1=1.0))
    with pytest.raises(SettingError, match="temporal must be 0 for packed sequences"):
        fit(Packs(), ActivityPenalty(temporal=1.0, include="rnn"))
    with pytest.raises(SettingError, match="temporal must be 0 for packed sequences"):
        fit(PacksFirst(), ActivityPenalty(temporal=1.0, include="same"))


def test_a_copy_of_the_module_is_not_watched():
    class Teaches(SomebodysModule):
        def on_train_start(self):
            self.teacher = [copy.deepcopy(self.network)]

        def training_step(self, batch, batch_idx):
            self.teacher[0](batch[0])
            return super().training_step(batch, batch_idx)

    ends = []
    for module in (Teaches(), SomebodysModule()):
        shown = fit(module, ActivityPenalty(l1=1.0), max_epochs=1)
        ends.append(shown["penalty/activity"])
    assert ends[0] == ends[1]


@pytest.mark.parametrize("returned", ["tensor", "dict"])
def test_the_term_reaches_the_loss_that_is_returned(returned):
    class Returns(SomebodysModule):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss if returned == "tensor" else {"loss": loss, "more": 1}

    module = Returns()
    fit(module, ActivityPenalty(l1=0.1, l2=0.2, temporal=0.3))
    from tests.conformance.by_hand import activity

    assert_same(weights_of(module), textbook_loop(Setting(), Textbook(term=activity)).weights[-1])


def test_toggled_optimizers_have_one_penalty():
    class Toggles(Manual):
        def configure_optimizers(self):
            parts = (self.network.first, self.network.head)
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                self.toggle_optimizer(optimizer)
                self.manual_backward(F.cross_entropy(self.network(batch[0]), batch[1]))
                optimizer.step()
                optimizer.zero_grad()
                self.untoggle_optimizer(optimizer)

    shown = fit(Toggles(), L2Penalty(weight=0.05), max_epochs=1, limit_train_batches=1)
    moved = abs(shown["penalty/l2"] - l2(network()).item())
    assert moved < 0.05 * l2(network()).item()  # the first part has made a step
