"""Changing layers of somebody else's network: where it is done, what survives, what is refused."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import VisionTransformer, resnet18

from lightning_reg.callbacks import (
    FreezeBatchNorm,
    InsertDropBlock,
    InsertDropConnect,
    InsertDropout,
    InsertStochasticDepth,
    ReplaceNorm,
    SpectralNormalization,
    WeightStandardization,
)
from lightning_reg.nn import ChannelsFirstLayerNorm, ChannelsFirstRMSNorm, GhostBatchNorm, monte_carlo_predict
from lightning_reg.settings import SettingError
from tests.helpers import quiet_trainer

# Some of the modules have parts in evaluation mode on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")


def vit():
    """Of vit_b_16's shape, but small."""
    return VisionTransformer(
        image_size=16, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3
    )


def resnet():
    return resnet18(num_classes=3)


def sequential():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(inplace=True)),
        nn.Flatten(),
        nn.Linear(16 * 256, 3),
    )


class Somebodys(LightningModule):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.net = make()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.training_step(batch, batch_idx))

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader():
    generator = torch.Generator().manual_seed(1)
    return DataLoader(TensorDataset(torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 3), batch_size=4)


def fit(make, *callbacks, module=None, **settings):
    module = Somebodys(make) if module is None else module
    trainer = quiet_trainer(*callbacks, **{"max_epochs": 1, **settings})
    trainer.fit(module, loader())
    return module, trainer


WHERE = {
    "resnet-dropout": (resnet, lambda: InsertDropout(p=0.5, include=("net.layer?",), kind="spatial")),
    "resnet-drop_block": (resnet, lambda: InsertDropBlock(p=0.5, types=("BasicBlock",), block_size=3)),
    "resnet-connect": (resnet, lambda: InsertDropConnect(p=0.5)),
    "resnet-blocks": (resnet, lambda: InsertStochasticDepth(p=0.8, include=("net.layer?.1",))),
    "resnet-branches": (resnet, lambda: InsertStochasticDepth(p=0.8, include=("net.layer*.bn2",), at="branch")),
    "vit-dropout": (vit, lambda: InsertDropout(p=0.5, types=("MLPBlock", nn.MultiheadAttention))),
    "vit-connect": (vit, lambda: InsertDropConnect(p=0.5, include=("*.mlp.*",))),
    "vit-blocks": (vit, lambda: InsertStochasticDepth(p=0.8, types=("EncoderBlock",))),
    "sequential-dropout": (sequential, lambda: InsertDropout(p=0.5, types="ReLU")),
    "sequential-gaussian": (sequential, lambda: InsertDropout(p=0.5, include="net.3", kind="gaussian")),
    "sequential-drop_block": (sequential, lambda: InsertDropBlock(p=0.5, types="ReLU", block_size=2)),
    "sequential-connect": (sequential, lambda: InsertDropConnect(p=0.5, types=("Conv2d",))),
}
LASTING = {
    "resnet-group": (resnet, lambda: ReplaceNorm(norm="group")),
    "resnet-spectral": (resnet, SpectralNormalization),
    "resnet-standardized": (resnet, WeightStandardization),
    "vit-rms": (vit, lambda: ReplaceNorm(norm="rms", types=("LayerNorm",))),
    "vit-spectral": (vit, lambda: SpectralNormalization(include=("*.mlp.*",))),
    "sequential-ghost": (sequential, lambda: ReplaceNorm(norm="ghost_batch")),
    "sequential-spectral": (sequential, SpectralNormalization),
    "sequential-standardized": (sequential, lambda: WeightStandardization(include=("net.3.*",))),
}


def cases(named):
    return pytest.mark.parametrize(("make", "attach"), named.values(), ids=named)


def keys_and_weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@cases(WHERE)
def test_training_differs_checkpoints_and_evaluation_do_not(make, attach, tmp_path):
    plain, _ = fit(make)
    module, trainer = fit(make, attach())
    keys = keys_and_weights(plain)
    assert list(keys) == list(module.state_dict())
    assert not all(torch.equal(value, keys[name]) for name, value in module.state_dict().items())
    trainer.save_checkpoint(tmp_path / "with.ckpt")
    without = Somebodys(make)
    quiet_trainer().test(without, loader(), ckpt_path=tmp_path / "with.ckpt", verbose=False)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in without.state_dict().items())
    with_it = quiet_trainer(attach()).predict(without, loader())
    assert torch.equal(with_it[0], quiet_trainer().predict(without, loader())[0])


@cases(LASTING)
def test_what_lasts_is_trained_and_loads_with_the_callback(make, attach, tmp_path):
    module, trainer = fit(make, attach())
    trained = {each for group in trainer.optimizers[0].param_groups for each in group["params"]}
    assert all(parameter in trained for parameter in module.parameters())
    trainer.save_checkpoint(tmp_path / "with.ckpt")
    expected = quiet_trainer().test(module, loader(), verbose=False)
    for again in (module, Somebodys(make)):  # the same module once more, and a new one
        found = quiet_trainer(attach()).test(again, loader(), ckpt_path=tmp_path / "with.ckpt", verbose=False)
        assert found == expected
    fit(make, attach(), module=module)  # and on


def test_late_layers_are_found():
    """Those that are made in setup or in configure_model, which comes after the callback's own setup."""

    class InSetup(Somebodys):
        def __init__(self):
            super().__init__(nn.Identity)

        def setup(self, stage):
            self.net = sequential()

    class InConfigureModel(InSetup):
        setup = LightningModule.setup

        def configure_model(self):
            self.net = sequential()

    for module in (InSetup(), InConfigureModel()):
        fit(None, ReplaceNorm(), module=module)
        assert isinstance(module.net[1], nn.GroupNorm)
        assert not {"setup", "configure_model"} & set(vars(module))


def test_the_change_is_printed_once_as_a_table(caplog):
    callback = InsertDropConnect(p=0.25)
    with caplog.at_level(logging.INFO):
        module, _ = fit(resnet, callback)
        fit(resnet, callback, module=module)
    tables = [record.message for record in caplog.records if record.message.startswith("InsertDropConnect")]
    assert [line.split() for line in tables[0].splitlines()] == [
        ["InsertDropConnect"],
        ["what", "where", "how", "many"],
        ["DropConnect(p=0.25)", "net.conv1", "...", "net.fc", "21"],
    ]
    assert len(tables) == 1


def test_rates_rise_with_depth():
    callback = InsertStochasticDepth(p=0.3, types=("EncoderBlock",))
    seen = []

    class Look(Somebodys):
        def on_train_start(self):
            seen.extend(hook.layer.p for each in self.modules() for hook in each._forward_hooks.values())

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
                self.handles.append(block.register_forward_hook(self.note))

        def note(self, block, args, output):
            inputs.append(args[0].detach().clone())
            outputs.append(output.detach().clone())

    fit(None, Look(p=0.999, include=("*.encoder_layer_0",)), module=module)
    assert torch.equal(inputs[0], outputs[0])


def test_hooks_modes_and_sharing_survive_a_replacement():
    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
            self.same = self.norm
            self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 3)

        def forward(self, inputs):
            return self.head(self.pool(self.same(self.norm(self.conv(inputs)))).flatten(1))

    module, calls = Somebodys(Shares), []
    handle = module.net.norm.register_forward_hook(lambda *_: calls.append(1))
    module.net.norm.eval()
    with torch.no_grad():
        module.net.norm.weight.fill_(2.0)
    module.net.norm.weight.requires_grad_(False)
    trainer = quiet_trainer(ReplaceNorm(norm="group"), max_epochs=1, limit_train_batches=1)
    trainer.fit(module, loader())
    assert isinstance(module.net.norm, nn.GroupNorm)
    assert module.net.norm is module.net.same
    assert not module.net.norm.training
    assert (module.net.norm.weight == 2.0).all()
    assert len(calls) == 2
    handle.remove()
    module.net.norm(torch.zeros(1, 16, 2, 2))
    assert len(calls) == 2


def test_another_norm_can_be_put_in_the_place_of_a_replacement_and_copies_know_theirs():
    module, _ = fit(sequential, ReplaceNorm(norm="ghost_batch"))
    copied = copy.deepcopy(module)
    statistics = copied.net[1].running_mean.clone()
    assert statistics.any()
    quiet_trainer(ReplaceNorm(norm="ghost_batch")).test(copied, loader(), verbose=False)
    assert torch.equal(copied.net[1].running_mean, statistics)
    fit(None, ReplaceNorm(norm="group"), module=module)
    assert type(module.net[1]) is nn.GroupNorm


def test_a_replacement_takes_over_statistics_and_settings():
    make = lambda: nn.Sequential(nn.BatchNorm2d(3, eps=0.25, momentum=0.5), nn.Flatten(), nn.Linear(768, 3))  # noqa: E731
    module = Somebodys(make)
    module.net[0].running_mean.fill_(3.0)
    quiet_trainer(ReplaceNorm(norm="ghost_batch")).test(module, loader(), verbose=False)
    norm = module.net[0]
    assert (norm.eps, norm.momentum, norm.running_mean.tolist()) == (0.25, 0.5, [3.0, 3.0, 3.0])


def test_norms_over_channels_first_are_replaced_by_such():
    make = lambda: nn.Sequential(ChannelsFirstLayerNorm(3), nn.Flatten(), nn.Linear(768, 3))  # noqa: E731
    module, _ = fit(make, ReplaceNorm(norm="rms", types="LayerNorm"))
    assert isinstance(module.net[0], ChannelsFirstRMSNorm)


@pytest.mark.parametrize("callbacks", [(FreezeBatchNorm(), None), (None, FreezeBatchNorm())], ids=["off", "on"])
def test_freezing_can_begin_and_end_at_a_resume(callbacks, tmp_path):
    """The optimizer's groups have to be the same, also where it leaves out what isn't trained."""

    class Filters(Somebodys):
        def configure_optimizers(self):
            return torch.optim.SGD([each for each in self.parameters() if each.requires_grad], lr=0.01, momentum=0.9)

    first, second = ([each] if each else [] for each in callbacks)
    _, trainer = fit(None, *first, module=Filters(sequential))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    module = Filters(sequential)
    quiet_trainer(*second, max_epochs=2).fit(module, loader(), ckpt_path=tmp_path / "one.ckpt")
    assert all(each.requires_grad for each in module.parameters())


def test_dropped_weights_and_reparametrized_ones_are_refused_in_either_order():
    for callbacks in ((InsertDropConnect(), SpectralNormalization()), (WeightStandardization(), InsertDropConnect())):
        with pytest.raises(SettingError, match=r"exclude must name net\.0"):
            fit(sequential, *callbacks)


def test_frozen_batch_norm_keeps_its_statistics_and_gives_back_its_modes():
    module = Somebodys(resnet)
    before = keys_and_weights(module)
    module.net.layer1.eval()
    modes = [each.training for each in module.modules()]
    fit(None, FreezeBatchNorm(exclude=("net.layer4*",)), module=module, limit_train_batches=1)
    after = module.state_dict()
    for name, value in before.items():
        is_norm = "bn" in name or "downsample.1" in name
        assert torch.equal(after[name], value) == (is_norm and "layer4" not in name), name
    assert [each.training for each in module.modules()] == modes
    assert all(each.requires_grad for each in module.parameters())


def test_inserted_layers_are_turned_on_by_monte_carlo_with_their_seed():
    class Uncertain(Somebodys):
        def predict_step(self, batch, batch_idx):
            return monte_carlo_predict(self.net, batch[0], num_samples=4).std

    module = Uncertain(sequential)
    assert quiet_trainer(InsertDropout(p=0.5, types="ReLU")).predict(module, loader())[0].max() > 0
    module.net[3].eval()
    inserted = [InsertDropout(p=0.5, types="ReLU", seed=seed) for seed in (0, 0, 1)]
    stds = [quiet_trainer(each).predict(module, loader())[0] for each in inserted]
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


def test_optimizers_over_a_list_from_before_are_pointed_out():
    class Remembers(Somebodys):
        def __init__(self):
            super().__init__(sequential)
            self.remembered = list(self.net.parameters())

        def configure_optimizers(self):
            return torch.optim.SGD(self.remembered, lr=0.1)

    with pytest.warns(UserWarning, match="ReplaceNorm has made new parameters that no optimizer trains: net.1.weight"):
        fit(None, ReplaceNorm(norm=GhostBatchNorm), module=Remembers())


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


def test_averages_of_the_plain_module_are_refused():
    for callback in (SpectralNormalization(), WeightStandardization()):
        with pytest.raises(SettingError, match="must not have a StochasticWeightAveraging with"):
            fit(sequential, StochasticWeightAveraging(0.1), callback)


def test_norms_that_do_more_are_not_replaced():
    class NormAndActivation(nn.BatchNorm2d):
        def __init__(self):
            super().__init__(3)
            self.act = nn.ReLU()

        def forward(self, inputs):
            return self.act(super().forward(inputs))

    make = lambda: nn.Sequential(NormAndActivation(), nn.Flatten(), nn.Linear(768, 3))  # noqa: E731
    with pytest.raises(SettingError, match=r"exclude must name net\.0, a NormAndActivation, which does more"):
        fit(make, ReplaceNorm())


@pytest.mark.parametrize(
    ("make", "attach", "message"),
    [
        (resnet, lambda: InsertDropout(p=1.0, types="ReLU"), r"p must be in \[0, 1\), but is 1.0"),
        (resnet, InsertDropout, "include or types must say behind which modules"),
        (resnet, lambda: InsertDropout(include="net.layr1"), "matches no module; there are net.layer1"),
        (resnet, lambda: InsertDropout(types="Relu6"), "types must be of modules that there are, .*ReLU.* 'Relu6'"),
        (resnet, lambda: InsertDropout(types="ReLU", include="net.bn1"), "types must be of modules that include"),
        (resnet, lambda: InsertDropout(types=3), "types must be classes or names of classes, but is 3"),
        (resnet, lambda: InsertDropout(types="ReLU", kind="block"), "kind must be one of standard, spatial, gaussian"),
        (resnet, lambda: InsertDropout(types="ReLU", seed=-1), "seed must be a whole number of at least 0"),
        (
            resnet,
            lambda: InsertStochasticDepth(types="BasicBlock"),
            r"net.layer2.0 makes \(4, 128, 2, 2\) of \(4, 64, 4, 4\); leave it out",
        ),
        (resnet, lambda: InsertStochasticDepth(types="BasicBlock", at="end"), "at must be one of block, branch"),
        (
            vit,
            lambda: InsertDropConnect(types="LayerNorm"),
            "modules of type Linear.*but chooses LayerNorm",
        ),
        (vit, ReplaceNorm, "must choose modules of type BatchNorm, but chooses Conv2d, Dropout"),
        (vit, FreezeBatchNorm, "must choose modules of type BatchNorm"),
        (resnet, lambda: InsertDropBlock(types="Linear"), r"inputs of DropBlock must have the shape .* \(4, 3\)"),
        (
            resnet,
            lambda: SpectralNormalization(include=("net.fc", "net.bn1")),
            "pattern 'net.bn1' must choose",
        ),
        (resnet, lambda: SpectralNormalization(types=("Conv2d", "BatchNorm2d")), "two dimensions or more, but net.bn1"),
        (resnet, lambda: InsertDropout(types="torch.nn.Relu"), "types must be classes.* 'torch.nn.Relu' can't be imp"),
        (vit, lambda: ReplaceNorm(norm="batch", types="GroupNorm"), "types must be of modules that there are"),
        (
            lambda: nn.Sequential(nn.GroupNorm(1, 3)),
            lambda: ReplaceNorm(norm="batch", types="GroupNorm"),
            "exclude must name net.0: of a GroupNorm it isn't known how many dimensions 'batch' is for",
        ),
        (
            lambda: nn.Sequential(nn.LayerNorm((3, 16, 16))),
            lambda: ReplaceNorm(norm="rms", types="LayerNorm"),
            r"exclude must name net.0, which normalizes over \(3, 16, 16\)",
        ),
        (lambda: nn.Sequential(nn.LazyBatchNorm2d()), ReplaceNorm, "exclude must name net.0, or .*: it is lazy"),
        (resnet, lambda: ReplaceNorm(norm="groups"), "norm must be one of none, batch.*did you mean 'group'"),
        (resnet, lambda: ReplaceNorm(types="Conv2d"), "exclude must name net.conv1, a Conv2d whose number of features"),
        (
            resnet,
            lambda: SpectralNormalization(types="BatchNorm2d"),
            r"two dimensions or more, but net.bn1 has",
        ),
        (
            resnet,
            lambda: WeightStandardization(types="BatchNorm2d"),
            r"two dimensions or more, but net.bn1 has",
        ),
        (resnet, lambda: SpectralNormalization(n_power_iterations=0), "n_power_iterations must be a whole number"),
        (
            lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)),
            FreezeBatchNorm,
            "exclude must name net.0, which has no running statistics",
        ),
    ],
)
def test_bad_input_is_refused(make, attach, message):
    module = Somebodys(make)
    with pytest.raises(SettingError, match=message):
        fit(None, attach(), module=module)
    assert not {"setup", "configure_model"} & set(vars(module))
    assert not any(each._forward_hooks or is_parametrized(each) for each in module.modules())
