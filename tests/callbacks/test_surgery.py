"""Changing layers of somebody else's network: where it is done, what checkpoints hold, what is refused."""

import logging
import re

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelPruning, StochasticWeightAveraging
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

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
from lightning_reg.nn import GhostBatchNorm
from lightning_reg.settings import SettingError
from tests.callbacks.somebodys import Somebodys, fit, loader, resnet, sequential, vit
from tests.helpers import quiet_trainer

# Some of the modules have parts in evaluation mode on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")


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
    trained = {weight for group in trainer.optimizers[0].param_groups for weight in group["params"]}
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


def test_dropped_weights_and_reparametrized_ones_are_refused_in_either_order():
    for callbacks in ((InsertDropConnect(), SpectralNormalization()), (WeightStandardization(), InsertDropConnect())):
        with pytest.raises(SettingError, match=r"exclude must name net\.0"):
            fit(sequential, *callbacks)


def test_spectral_normalization_refuses_weights_that_are_all_zero_unless_a_checkpoint_brings_others(tmp_path):
    def zeroed():
        net = sequential()
        nn.init.zeros_(net[-1].weight)
        return net

    with pytest.raises(SettingError, match=r"exclude must name net\.\d+, whose weights are all 0"):
        fit(zeroed, SpectralNormalization())
    _, trainer = fit(sequential, SpectralNormalization())
    trainer.save_checkpoint(tmp_path / "trained.ckpt")
    module = Somebodys(zeroed)
    quiet_trainer(SpectralNormalization(), max_epochs=trainer.current_epoch + 1).fit(
        module, loader(), ckpt_path=tmp_path / "trained.ckpt"
    )
    assert all(value.isfinite().all() for value in module.state_dict().values())


@pytest.mark.parametrize("technique", [SpectralNormalization(), WeightStandardization()])
@pytest.mark.parametrize("first", [True, False])
def test_pruning_of_reparametrized_weights_is_refused_in_either_order(technique, first):
    pruning = ModelPruning("l1_unstructured", amount=0.3)
    with pytest.raises(SettingError, match=r"exclude must name net\.0 in .*, or parameters_to_prune leave it out"):
        fit(sequential, *((pruning, technique) if first else (technique, pruning)))


def test_other_weights_than_the_reparametrized_ones_can_be_pruned():
    module = Somebodys(sequential)
    pruning = ModelPruning(
        "l1_unstructured",
        parameters_to_prune=[(module.net[5], "weight")],
        amount=0.3,
        use_lottery_ticket_hypothesis=False,
    )
    fit(None, pruning, SpectralNormalization(include=("net.0",)), module=module)
    assert (module.net[5].weight == 0).float().mean() == pytest.approx(0.3, abs=0.01)


def test_optimizers_over_a_list_from_before_are_pointed_out():
    class Remembers(Somebodys):
        def __init__(self):
            super().__init__(sequential)
            self.remembered = list(self.net.parameters())

        def configure_optimizers(self):
            return torch.optim.SGD(self.remembered, lr=0.1)

    with pytest.warns(UserWarning, match="ReplaceNorm has made new parameters that no optimizer trains: net.1.weight"):
        fit(None, ReplaceNorm(norm=GhostBatchNorm), module=Remembers())


def test_averages_of_the_plain_module_are_refused():
    for callback in (SpectralNormalization(), WeightStandardization()):
        with pytest.raises(SettingError, match="must not have StochasticWeightAveraging with"):
            fit(sequential, StochasticWeightAveraging(0.1), callback)


@pytest.mark.parametrize(
    ("make", "attach", "message"),
    [
        (resnet, lambda: InsertDropout(p=1.1, types="ReLU"), r"p must be in \[0, 1\], but is 1.1"),
        (resnet, lambda: InsertDropout(p=1.0, types="ReLU", kind="gaussian"), r"p must be in \[0, 1\), but is 1.0"),
        (resnet, InsertDropout, "include or types must say behind which modules"),
        (resnet, lambda: InsertDropout(include="net.layr1"), "matches no module; there are net.layer1"),
        (resnet, lambda: InsertDropout(types="Relu6"), "types must be of modules that there are, .*ReLU.* 'Relu6'"),
        (
            resnet,
            lambda: InsertDropout(types="ReLU", include="net.bn1"),
            "types must be of modules that the patterns choose",
        ),
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
        (lambda: nn.Sequential(nn.LazyBatchNorm2d()), FreezeBatchNorm, "exclude must name net.0, or .*: it is lazy"),
        (lambda: nn.Sequential(nn.LazyConv2d(3, 1)), SpectralNormalization, "exclude must name net.0, .*: it is lazy"),
        (lambda: nn.Sequential(nn.LazyConv2d(3, 1)), WeightStandardization, "exclude must name net.0, .*: it is lazy"),
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
    assert not any(submodule._forward_hooks or is_parametrized(submodule) for submodule in module.modules())


class Linear(nn.Module):
    """A layer of somebody's that shares no more than the name with torch's."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 6))

    def forward(self, inputs):
        return inputs @ self.weight.mT


def test_a_class_that_shares_its_name_with_a_suited_one_is_told_in_full():
    message = rf"must choose modules of type Linear, Conv1d, Conv2d, Conv3d, but chooses {re.escape(__name__)}\.Linear$"
    with pytest.raises(SettingError, match=message):
        fit(Linear, InsertDropConnect(p=0.5))
