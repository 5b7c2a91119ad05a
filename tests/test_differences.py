"""What docs/differences.md says of torch, torchvision and Lightning, seen beside them."""

import copy
import functools
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import fx, nn
from torch.jit.frontend import NotSupportedError
from torch.utils.data import DataLoader, TensorDataset
from torchvision.ops import drop_block2d
from torchvision.transforms import v2

from lightning_reg.callbacks import (
    BestWeightsEarlyStopping,
    ExponentialMovingAverage,
    GradientClipping,
    L2Penalty,
    LabelSmoothing,
    Lookahead,
    SharpnessAwareMinimization,
    SpectralNormalization,
    StochasticWeightAverage,
)
from lightning_reg.core.selection import select_parameters
from lightning_reg.nn import DropBlock, Dropout, GhostBatchNorm, SpatialDropout
from lightning_reg.optim import layer_decay_groups, weight_decay_groups
from lightning_reg.settings import SettingError
from lightning_reg.transforms import CutMix, Cutout, Mixup, RandomErasing
from tests.helpers import quiet_trainer


class SmallNetwork(LightningModule):
    """Two layers and a BatchNorm, in float64; remembers its losses and what validation was done with."""

    def __init__(self, manual=False):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
        self.automatic_optimization = not manual
        self.losses, self.trained, self.validated, self.batches = [], [], [], 0

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        loss = F.cross_entropy(self.network(inputs), targets)
        self.losses.append(loss.detach())
        self.batches += 1
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def on_before_zero_grad(self, optimizer):
        self.trained.append(self.network[0].weight.detach().clone())

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.network[0].weight.detach().clone())
        self.log("val_loss", F.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def data():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(24, 4, generator=generator, dtype=torch.float64)
    return DataLoader(TensorDataset(inputs, torch.arange(24) % 3), batch_size=6)


def fitted(*callbacks, manual=False, **settings):
    module = SmallNetwork(manual)
    trainer = quiet_trainer(*callbacks, **{"max_epochs": 3, "num_sanity_val_steps": 0, **settings})
    trainer.fit(module, data(), data())
    return module


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_averages_are_the_same_without_warm_up():
    theirs = fitted(EMAWeightAveraging(decay=0.8, use_buffers=False))
    ours = fitted(ExponentialMovingAverage(decay=0.8, warmup=False, buffers="copy"))
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.validated[-1], theirs.validated[-1], rtol=1e-12, atol=1e-14)
    assert not torch.allclose(weights(fitted(ExponentialMovingAverage(decay=0.8))), weights(theirs))


def test_an_average_takes_the_weights_that_end_a_period():
    """Decay 0 keeps those that were taken last; twelve steps have periods of five and a rest."""
    theirs = fitted(EMAWeightAveraging(decay=0.0, update_every_n_steps=5, use_buffers=False))
    ours = fitted(ExponentialMovingAverage(decay=0.0, every_n_steps=5))
    after = fitted().trained  # the n-th of them is the weights after n - 1 steps
    assert ours.network[0].weight.equal(after[10])
    assert theirs.network[0].weight.equal(after[11])


def test_an_average_of_late_weights_runs_no_more_steps_and_needs_no_rate():
    with pytest.raises(TypeError):
        StochasticWeightAveraging()
    theirs = fitted(StochasticWeightAveraging(swa_lrs=0.5, swa_epoch_start=1))
    ours = fitted(StochasticWeightAverage(start=1))
    assert (theirs.batches, ours.batches) == (16, 12)
    assert ours.validated[8].equal(ours.network[0].weight)  # each epoch validates four batches
    assert not theirs.validated[8].equal(theirs.network[0].weight)
    assert theirs.validated[12].equal(theirs.network[0].weight)  # in the epoch that follows the last


def test_a_mean_is_of_what_epochs_end_with_from_an_epoch_that_is_counted_from_0():
    theirs = fitted(StochasticWeightAveraging(swa_lrs=0.5, swa_epoch_start=2))
    ours = fitted(StochasticWeightAverage(start=1, lr=0.5, anneal_epochs=0))
    plain = fitted()  # four steps an epoch
    begins, ends = [plain.trained[4], plain.trained[8]], [plain.trained[8], plain.network[0].weight]
    torch.testing.assert_close(theirs.network[0].weight, sum(begins) / 2, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.network[0].weight, sum(ends) / 2, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("restores", [True, False])
def test_early_stopping_restores_the_best_weights_unless_it_shall_not(restores):
    stopping = {"monitor": "val_loss", "mode": "max", "patience": 1}
    theirs = fitted(EarlyStopping(**stopping))
    ours = fitted(BestWeightsEarlyStopping(**stopping, restore_best_weights=restores))
    assert ours.batches == theirs.batches
    assert weights(ours).equal(weights(theirs)) is not restores
    assert ours.network[0].weight.equal(ours.validated[0]) is restores


def test_gradients_are_clipped_in_manual_optimization():
    with pytest.raises(MisconfigurationException, match="not supported for manual"):
        fitted(manual=True, gradient_clip_val=0.01)
    by_hand = fitted(gradient_clip_val=0.01)
    assert weights(fitted(GradientClipping(max_norm=0.01), manual=True)).equal(weights(by_hand))


def test_the_logged_loss_is_that_of_the_task():
    assert fitted(L2Penalty(weight=5.0)).losses[0] == fitted().losses[0]
    assert fitted(LabelSmoothing(smoothing=0.5)).losses[0] != fitted().losses[0]


def test_decay_spares_norms_and_biases():
    class Decays(SmallNetwork):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.5, weight_decay=0.1)

    def fit(module, *callbacks):
        quiet_trainer(*callbacks, limit_train_batches=1, limit_val_batches=0).fit(module, data(), data())
        return weights(module)

    everything = fit(Decays())
    penalty = functools.partial(L2Penalty, weight=0.1)
    torch.testing.assert_close(
        fit(SmallNetwork(), penalty(exclude_norm_and_bias=False)), everything, rtol=0, atol=1e-15
    )
    spared = SmallNetwork()
    plain = SmallNetwork()
    fit(spared, penalty())
    fit(plain)
    same = {name for name, value in spared.named_parameters() if value.equal(plain.get_parameter(name))}
    assert same == {"network.0.bias", "network.1.weight", "network.1.bias", "network.3.bias"}


def test_decay_spares_embeddings_and_penalties_do_not():
    module = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2))
    assert weight_decay_groups(module, 0.1)[0]["params"] == [module[1].weight]
    assert list(select_parameters(module)) == ["0.weight", "1.weight"]


def test_a_penalty_shrinks_weights_without_a_gradient():
    class Unused(SmallNetwork):
        def __init__(self, weight_decay):
            super().__init__()
            self.unused = nn.Linear(1, 1, bias=False).double()
            self.weight_decay = weight_decay

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.5, weight_decay=self.weight_decay)

    for weight_decay, callbacks, factor in ((0.1, (), 1.0), (0.0, (L2Penalty(weight=0.1),), 0.95)):
        module = Unused(weight_decay)
        before = module.unused.weight.detach().clone()
        quiet_trainer(*callbacks, limit_train_batches=1, limit_val_batches=0).fit(module, data(), data())
        torch.testing.assert_close(module.unused.weight.detach(), before * factor, rtol=1e-12, atol=0)


def test_probabilities_are_not_smoothed():
    class Soft(SmallNetwork):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.network(batch[0]), F.one_hot(batch[1], 3).double())

    with pytest.raises(SettingError, match="neither cross_entropy nor nll_loss with class indices"):
        quiet_trainer(LabelSmoothing(smoothing=0.1)).fit(Soft(), data(), data())


@pytest.mark.parametrize("layer", [Dropout(0.1), DropBlock(0.1), GhostBatchNorm(4)])
def test_layers_are_exported_rather_than_scripted(layer):
    images = torch.randn(2, 4, 8, 8)
    exported = torch.export.export(layer.eval(), (images,)).module()
    torch.testing.assert_close(exported(images), layer(images))


@pytest.mark.parametrize("erase", [Cutout(size=2), RandomErasing(prob=1.0)])
def test_what_erases_takes_a_floating_dtype(erase):
    with pytest.raises(SettingError, match="floating dtype"):
        erase(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2))


def test_dropout_draws_other_masks_at_the_same_rate():
    inputs = torch.ones(100_000)
    masks = []
    for layer in (nn.Dropout(0.3), Dropout(0.3)):
        torch.manual_seed(0)
        masks.append(layer(inputs))
    assert not masks[0].equal(masks[1])
    assert all(abs((mask == 0).double().mean() - 0.3) < 0.01 for mask in masks)


def test_ghost_batches_count_as_batches():
    ghosts, whole = GhostBatchNorm(4, ghost_batch_size=5), nn.BatchNorm1d(4)
    inputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    ghosts(inputs)
    for part in inputs.split(5):
        whole(part)
    torch.testing.assert_close(ghosts.running_var, whole.running_var)


def test_a_layer_is_one_call_in_a_graph():
    graph = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), DropBlock(0.1))).graph
    assert [node.op for node in graph.nodes] == ["placeholder", "call_module", "call_module", "output"]


def test_settings_are_numbers_of_python():
    with pytest.raises(SettingError, match=r"^weight must be a number, but is .*; convert it by float\(\.\.\.\)$"):
        L2Penalty(weight=np.float32(0.1))
    with pytest.raises(SettingError, match=r"^k must be a whole number .*; convert it by int\(\.\.\.\)$"):
        Lookahead(k=np.int64(5))
    assert L2Penalty(weight=float(np.float32(0.1))).weight == pytest.approx(0.1)


@pytest.mark.parametrize("kinds", [(Mixup, v2.MixUp), (CutMix, v2.CutMix)])
def test_an_own_label_stays_the_dominant_one_beside_the_same_neighbor(kinds):
    ours, theirs = kinds[0](alpha=1.0), kinds[1](alpha=1.0, num_classes=8)
    images, targets = torch.rand(8, 3, 16, 16), torch.arange(8)
    shares = []
    for seed in range(20):
        torch.manual_seed(seed)
        _, own = ours(images, F.one_hot(targets, 8).double(), stream=Random(seed))
        _, other = theirs(images, targets)
        for mixed in (own, other):
            assert all(set(row.nonzero().flatten().tolist()) <= {n, (n - 1) % 8} for n, row in enumerate(mixed))
        shares.append((own.diagonal().min(), other.diagonal().min()))
    assert min(own for own, _ in shares) >= 0.5 > min(other for _, other in shares)


def test_two_dimensions_are_a_batch_of_features():
    torch.manual_seed(0)
    rows = torch.ones(64, 8)
    assert nn.Dropout1d(0.5)(rows).std(1).eq(0).all()  # 64 channels of one sample
    assert not SpatialDropout(0.5)(rows).std(1).eq(0).all()


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("layer", [Dropout(0.5), SpatialDropout(0.5), GhostBatchNorm(8)])
def test_layers_are_exported_and_traced_but_not_scripted(layer):
    inputs = torch.randn(4, 8, 3)
    expected = layer.eval()(inputs)
    assert torch.export.export(layer, (inputs,)).module()(inputs).equal(expected)
    assert torch.jit.trace(layer, inputs)(inputs).equal(expected)
    with pytest.raises((RuntimeError, NotSupportedError)):
        torch.jit.script(layer)


def test_each_image_has_a_box_of_its_own():
    torch.manual_seed(0)
    images = torch.ones(8, 1, 16, 16)
    erased, _ = RandomErasing(prob=1.0)(images, torch.zeros(8), stream=Random(0))
    assert not erased[1:].eq(erased[:1]).all()
    together = v2.RandomErasing(p=1.0)(images)
    assert together.eq(together[:1]).all()


def test_blocks_are_dropped_at_the_rate_that_was_asked_for():
    torch.manual_seed(0)
    inputs = torch.ones(4_000, 1, 6, 6)
    ours, theirs = DropBlock(0.3, block_size=3)(inputs), drop_block2d(inputs, 0.3, 3)
    rates = [(dropped == 0).double().mean().item() for dropped in (ours, theirs)]
    assert rates[0] == pytest.approx(0.3, abs=0.01)
    assert rates[1] != pytest.approx(0.3, abs=0.01)
    assert (ours.mean(0) - 1).abs().max() < 0.1 < (theirs.mean(0) - 1).abs().max()


def test_a_checkpoint_has_the_average_where_the_model_is_expected(tmp_path):
    found = {}
    for name, average in {"theirs": EMAWeightAveraging(decay=0.8), "ours": ExponentialMovingAverage(decay=0.8)}.items():
        saver = ModelCheckpoint(tmp_path / name, save_last=True)
        module = fitted(average, copy.deepcopy(saver), enable_checkpointing=True)
        found[name] = torch.load(tmp_path / name / "last.ckpt", weights_only=True)
        assert found[name]["state_dict"]["network.0.weight"].equal(module.network[0].weight)
    assert "current_model_state" in found["theirs"]
    assert "current_model_state" not in found["ours"]


def test_names_and_keys_stand_beside_those_of_lightning(tmp_path):
    metrics, keys = {}, {}
    for name, callbacks in {"plain": (), "ours": (L2Penalty(weight=0.1), ExponentialMovingAverage(decay=0.8))}.items():
        module = SmallNetwork()
        trainer = quiet_trainer(*callbacks, max_epochs=1, logger=CSVLogger(tmp_path), log_every_n_steps=1)
        trainer.fit(module, data(), data())
        metrics[name] = set(trainer.callback_metrics)
        trainer.save_checkpoint(tmp_path / name)
        keys[name] = set(torch.load(tmp_path / name, weights_only=True))
    assert metrics["plain"] == {"val_loss"}
    assert metrics["ours"] == {"val_loss", "penalty/l2", "penalty/l2_share"}
    assert keys["ours"] - keys["plain"] == {"lightning_reg"}
    goes_on = quiet_trainer(max_epochs=2)
    goes_on.fit(SmallNetwork(), data(), data(), ckpt_path=tmp_path / "ours", weights_only=True)
    assert goes_on.global_step == 8


def test_what_runs_a_step_again_runs_its_hooks_again_and_puts_back_what_they_changed():
    calls = []

    class Counts(SmallNetwork):
        def on_before_backward(self, loss):
            calls.append(loss)

    for technique, count in (((), 4), ((SharpnessAwareMinimization(),), 8)):
        module = Counts()
        quiet_trainer(*technique).fit(module, data(), data())
        assert (len(calls), module.batches) == (count, 4)
        calls.clear()


def test_what_could_not_act_is_refused():
    class Searches(SmallNetwork):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    quiet_trainer(max_epochs=1).fit(Searches(), data(), data())
    with pytest.raises(SettingError, match="optimizer must not be LBFGS"):
        quiet_trainer(L2Penalty(weight=0.1), max_epochs=1).fit(Searches(), data(), data())


def test_weights_of_zeros_are_refused_rather_than_nan():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))
    nn.init.zeros_(layer.parametrizations.weight.original)
    assert layer(torch.ones(1, 2)).isnan().all()
    module = SmallNetwork()
    nn.init.zeros_(module.network[0].weight)
    with pytest.raises(SettingError, match="weights are all 0"):
        quiet_trainer(SpectralNormalization()).fit(module, data(), data())


def test_bytes_are_not_mixed():
    images, targets = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8), torch.arange(4)
    assert v2.CutMix(num_classes=4)(images, targets)[0].dtype == torch.uint8
    for mix in (CutMix(), Mixup()):
        with pytest.raises(SettingError, match="floating dtype"):
            mix(images, targets, num_classes=4)


def test_numbered_modules_are_layers_of_their_own():
    param_groups_layer_decay = pytest.importorskip("timm.optim").param_groups_layer_decay
    network = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    network.pretrained_cfg = {"classifier": "2"}
    ours = {group["lr"] for group in layer_decay_groups(network, 0.5, lr=1.0)}
    theirs = {group["lr_scale"] for group in param_groups_layer_decay(network, layer_decay=0.5)}
    assert (ours, theirs) == ({0.25, 0.5, 1.0}, {0.5, 1.0})


def test_counts_begin_anew_in_a_copy_and_behind_a_checkpoint_of_another_callback(tmp_path):
    average = ExponentialMovingAverage(decay=0.8)
    fitted(average)
    assert (average.updates, copy.deepcopy(average).updates) == (12, 0)
    stopping = {"monitor": "val_loss", "mode": "max", "patience": 3}
    trainer = quiet_trainer(EarlyStopping(**stopping), max_epochs=2)
    trainer.fit(SmallNetwork(), data(), data())
    assert trainer.early_stopping_callback.wait_count > 0
    trainer.save_checkpoint(tmp_path / "theirs.ckpt")
    ours = BestWeightsEarlyStopping(**stopping)
    with pytest.warns(UserWarning, match="add the following callbacks.*EarlyStopping"):
        quiet_trainer(ours, max_epochs=3).fit(
            SmallNetwork(), data(), data(), ckpt_path=tmp_path / "theirs.ckpt", weights_only=True
        )
    assert ours.wait_count == 0
