"""Layers that are put behind others: their modes, their random numbers, and that they aren't silently inert."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_reg.callbacks import (
    FreezeBatchNorm,
    InsertDropConnect,
    InsertDropout,
    InsertLayerDrop,
    InsertStochasticDepth,
    ReplaceNorm,
    SpectralNormalization,
)
from lightning_reg.nn import monte_carlo_predict
from lightning_reg.settings import SettingError
from tests.callbacks.somebodys import Somebodys, fit, loader, sequential, vit
from tests.helpers import quiet_trainer

# Some of the modules have parts in evaluation mode on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")


def test_rates_rise_with_depth():
    callback = InsertStochasticDepth(p=0.3, types=("EncoderBlock",))
    seen = []

    class Look(Somebodys):
        def on_train_start(self):
            seen.extend(hook.layer.p for module in self.modules() for hook in module._forward_hooks.values())

    fit(None, callback, module=Look(vit))
    assert seen == pytest.approx([0.1, 0.2, 0.3])


def test_dropped_blocks_hand_their_inputs_on():
    """At a rate near 1 a block is its input, nearly always."""
    module = Somebodys(vit)
    inputs, outputs = [], []
    block = module.net.encoder.layers[0]

    class Look(InsertStochasticDepth):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            if not inputs:
                block.register_forward_hook(self.note)

        def note(self, block, args, output):
            inputs.append(args[0].detach().clone())
            outputs.append(output.detach().clone())

    fit(None, Look(p=0.999, include=("*.encoder_layer_0",)), module=module)
    assert torch.equal(inputs[0], outputs[0])


@pytest.mark.parametrize("callback", [InsertStochasticDepth, InsertLayerDrop])
def test_what_works_in_place_is_no_block(callback):
    with pytest.raises(
        SettingError, match=r"include must leave net\.3\.1 out: it hands on its input, changed in place"
    ):
        fit(sequential, callback(include=("net.3.1",)))


def test_inserted_layers_are_turned_on_by_monte_carlo_with_their_seed():
    class Uncertain(Somebodys):
        def predict_step(self, batch, batch_idx):
            return monte_carlo_predict(self.net, batch[0], num_samples=4).std

    module = Uncertain(sequential)
    assert quiet_trainer(InsertDropout(p=0.5, types="ReLU")).predict(module, loader())[0].max() > 0
    module.net[3].eval()
    inserted = [InsertDropout(p=0.5, types="ReLU", seed=seed) for seed in (0, 0, 1)]
    stds = [quiet_trainer(callback).predict(module, loader())[0] for callback in inserted]
    assert torch.equal(stds[0], stds[1])
    assert not torch.equal(stds[0], stds[2])


def test_passes_of_monte_carlo_are_independent_and_so_are_layers():
    """The difference of two layers' outputs has the variance of both; with the same mask it would have none."""

    class Difference(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Identity(), nn.Identity()

        def forward(self, inputs):
            ones = torch.ones(100, 100)
            return self.one(ones) - self.other(ones)

    class Uncertain(Somebodys):
        def predict_step(self, batch, batch_idx):
            return monte_carlo_predict(self.net, batch[0], num_samples=50, outputs="values").std

    std = quiet_trainer(InsertDropout(p=0.5, types="Identity")).predict(Uncertain(Difference), loader())[0]
    # Of 10,000 units a variance of 2 each, less what the mean over 50 passes takes; its spread is that of a sample of
    # 500,000 numbers, no more than three times as much as of normal ones.
    assert std.square().mean().item() == pytest.approx(2 * 49 / 50, rel=4 * 3 * (2 / 500_000) ** 0.5)


def test_layers_follow_the_mode_of_their_host_but_not_of_a_frozen_norm():
    module = Somebodys(sequential)
    module.net[2].eval()
    with pytest.warns(UserWarning, match=r"does nothing to what wasn't run in training mode: net\.2"):
        frozen, _ = fit(None, InsertDropout(p=0.5, include=("net.2", "net.5")), module=module)
    plain, _ = fit(sequential)
    partly, _ = fit(sequential, InsertDropout(p=0.5, include=("net.2",)))
    assert not torch.equal(frozen.net[5].weight, plain.net[5].weight)
    assert not torch.equal(partly.net[0].weight, plain.net[0].weight)
    module.net[2].eval()
    with pytest.raises(SettingError, match="in training mode, but none of 1 did"):
        fit(None, InsertDropout(p=0.5, include=("net.2",)), module=module)
    behind = [FreezeBatchNorm(), InsertDropout(p=0.5, include=("net.1",))]
    assert not torch.equal(
        fit(sequential, *behind)[0].net[0].weight, fit(sequential, FreezeBatchNorm())[0].net[0].weight
    )


def test_what_was_compiled_before_is_compiled_anew():
    """Code from before there was a hook wouldn't run it."""
    torch._dynamo.reset()
    weights = []
    for attached in ([], [InsertDropout(p=0.5, types="ReLU")]):
        module = Somebodys(sequential)
        module.net.compile(backend="aot_eager")
        module.net(torch.zeros(4, 3, 16, 16))
        fit(None, *attached, module=module)
        weights.append(module.net[0].weight)
    assert not torch.equal(*weights)
    torch._dynamo.reset()


def test_a_layer_behind_a_norm_survives_the_norms_replacement_but_not_without_its_hooks():
    inserted = InsertDropout(p=0.5, include=("net.1",))
    with_it, _ = fit(sequential, inserted, ReplaceNorm())
    without, _ = fit(sequential, ReplaceNorm())
    assert not torch.equal(with_it.net[0].weight, without.net[0].weight)

    class Replaces(Somebodys):
        def configure_optimizers(self):
            self.net[1] = nn.BatchNorm2d(16)  # as Lightning does for sync_batchnorm, after callbacks' setup
            return super().configure_optimizers()

    with pytest.raises(SettingError, match=r"include must leave net\.1 out, which was replaced"):
        fit(None, inserted, module=Replaces(sequential))
    with pytest.raises(SettingError, match="FreezeBatchNorm must come after whatever replaces BatchNorm"):
        fit(None, FreezeBatchNorm(), module=Replaces(sequential))


def test_what_is_not_run_is_named():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.idle = sequential(), nn.Linear(3, 3)

        def forward(self, inputs):
            return self.layers(inputs)

    for callback in (InsertDropout(p=0.5, types="Linear"), InsertDropConnect(types="Linear")):
        with pytest.warns(UserWarning, match="does nothing to what wasn't run in training mode: net.idle"):
            fit(Skips, callback)
    with pytest.raises(SettingError, match=r"none of 1 did; first is net\.idle"):
        fit(Skips, InsertDropConnect(include=("net.idle",)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_compiled_block_under_checkpointing_has_one_mask(reentrant):
    """The gradient of h² · m at every unit is 2 h · m, with the m of the forward pass."""
    torch._dynamo.reset()

    class Square(nn.Module):
        def forward(self, inputs):
            return inputs**2

    class Checkpointed(Somebodys):
        def __init__(self):
            super().__init__(lambda: nn.Sequential(nn.Identity(), Square()))
            self.net.compile(backend="aot_eager")
            self.hidden = nn.Parameter(torch.ones(50))

        def training_step(self, batch, batch_idx):
            self.out = checkpoint(self.net, self.hidden, use_reentrant=reentrant)
            return self.out.sum()

        def on_after_backward(self):
            assert 0 < self.out.count_nonzero() < 50
            torch.testing.assert_close(self.hidden.grad, 2 * self.out.detach() / self.hidden.detach())

    fit(None, InsertDropout(p=0.5, include=("net.0",)), module=Checkpointed())
    torch._dynamo.reset()


def test_globs_do_not_reach_into_parametrizations():
    module, _ = fit(sequential, SpectralNormalization(), InsertDropout(p=0.5, include=("net.0*",)))
    assert type(module.net[0].parametrizations.weight.original) is nn.Parameter


@pytest.mark.parametrize("callback", [InsertDropout, InsertStochasticDepth])
def test_at_a_rate_of_one_nothing_comes_through(callback):
    """Of a whole block, what it adds to its input; so the output is the input, to the bit."""
    kept = {}

    class Keeps(Somebodys):
        def training_step(self, batch, batch_idx):
            norm = self.net[1]
            handles = [
                norm.register_forward_pre_hook(lambda _, args: kept.update(given=args[0].detach().clone())),
                self.net[2].register_forward_pre_hook(lambda _, args: kept.update(made=args[0].detach().clone())),
            ]
            loss = super().training_step(batch, batch_idx)
            for handle in handles:
                handle.remove()
            return loss

    fit(None, callback(p=1.0, include=("net.1",)), module=Keeps(sequential))
    expected = kept["given"] if callback is InsertStochasticDepth else torch.zeros_like(kept["given"])
    assert torch.equal(kept["made"], expected)
