"""Norms that are replaced or frozen in networks that exist."""

import copy
import functools
import pickle
from typing import NamedTuple

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import (
    FreezeBatchNorm,
    InsertDropConnect,
    ReplaceNorm,
    SpectralNormalization,
    WeightStandardization,
)
from lightning_reg.nn import ChannelsFirstLayerNorm, ChannelsFirstRMSNorm, GhostBatchNorm
from lightning_reg.settings import SettingError
from tests.callbacks.somebodys import Somebodys, fit, loader, resnet, sequential
from tests.helpers import quiet_trainer

# Some of the modules have parts in evaluation mode on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")


def keys_and_weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


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


class Layers(NamedTuple):
    """A container of a project."""

    conv: nn.Module
    norm: nn.Module


@pytest.mark.parametrize(
    ("contained", "read"),
    [
        (lambda conv, norm: [conv, norm, torch.relu], lambda kept: kept),
        (lambda conv, norm: (conv, norm, torch.relu), lambda kept: kept),
        (lambda conv, norm: {"conv": conv, "norm": norm}, lambda kept: list(kept.values())),
        (Layers, lambda kept: [kept.conv, kept.norm]),
        (lambda conv, norm: {"stages": [(conv, norm)]}, lambda kept: list(kept["stages"][0])),
    ],
    ids=["list", "tuple", "dict", "namedtuple", "nested"],
)
def test_a_norm_that_is_called_through_a_container_is_replaced_there_too(contained, read):
    class Contained(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 3)
            self.kept = contained(self.conv, self.norm)
            self.around = [self.kept, self.kept]
            self.around.append(self.around)

        def forward(self, inputs):
            for step in read(self.kept):
                inputs = step(inputs)
            return self.head(inputs.mean((2, 3)))

    module = Somebodys(Contained)
    quiet_trainer(ReplaceNorm(norm="group"), max_epochs=1, limit_train_batches=1).fit(module, loader())
    assert isinstance(module.net.norm, nn.GroupNorm)
    assert read(module.net.kept)[1] is module.net.norm
    assert read(module.net.around[1])[1] is module.net.norm
    assert module.net.norm.weight.grad is not None


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


def without(*leaves):
    norm = nn.BatchNorm2d(3)
    for leaf in leaves:
        norm.register_parameter(leaf, None)
    return nn.Sequential(norm, nn.Flatten(), nn.Linear(768, 3))


@pytest.mark.parametrize("norm", ["batch", "ghost_batch", "layer", "instance", "group", "rms", "filter_response"])
@pytest.mark.parametrize("leaves", [("bias",), ("weight", "bias")])
def test_a_replacement_has_no_scale_and_no_shift_that_the_norm_was_made_without(norm, leaves):
    module, _ = fit(lambda: without(*leaves), ReplaceNorm(norm=norm))
    assert not {f"net.0.{leaf}" for leaf in leaves} & dict(module.named_parameters()).keys()
    repr(module), copy.deepcopy(module).net[0](torch.zeros(2, 3, 4, 4))


def test_what_a_user_makes_has_what_it_was_made_with():
    module, _ = fit(lambda: without("bias"), ReplaceNorm(norm=functools.partial(nn.GroupNorm, 1)))
    assert module.net[0].bias is not None


def test_norms_over_channels_first_are_replaced_by_such():
    make = lambda: nn.Sequential(ChannelsFirstLayerNorm(3), nn.Flatten(), nn.Linear(768, 3))  # noqa: E731
    module, _ = fit(make, ReplaceNorm(norm="rms", types="LayerNorm"))
    assert isinstance(module.net[0], ChannelsFirstRMSNorm)


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


class NormThenReLU(nn.BatchNorm2d):
    """BatchNorm fused with an activation that is no child module."""

    def forward(self, inputs):
        return super().forward(inputs).relu()


def test_a_subclass_with_a_forward_of_its_own_is_replaced_only_where_types_names_it():
    make = lambda: nn.Sequential(NormThenReLU(3), nn.Flatten(), nn.Linear(768, 3))  # noqa: E731
    with pytest.raises(SettingError, match=r"exclude must name net\.0, a NormThenReLU, which computes in a way of its"):
        fit(make, ReplaceNorm())
    module, _ = fit(make, ReplaceNorm(types=("NormThenReLU",)))
    assert type(module.net[0]) is nn.GroupNorm


class NormAndNoActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d, which computes by itself, where its activation is turned off."""

    def __init__(self, width):
        super().__init__(width)
        self.act = nn.Identity()

    def forward(self, inputs):
        return self.act(super().forward(inputs))


@pytest.mark.parametrize("norm", [NormAndNoActivation, nn.SyncBatchNorm, GhostBatchNorm])
def test_norms_of_torch_of_ours_and_without_an_activation_are_replaced(norm):
    module, _ = fit(lambda: nn.Sequential(norm(3), nn.Flatten(), nn.Linear(768, 3)), ReplaceNorm())
    assert type(module.net[0]) is nn.GroupNorm


@pytest.mark.parametrize("callbacks", [(FreezeBatchNorm(), None), (None, FreezeBatchNorm())], ids=["off", "on"])
def test_freezing_can_begin_and_end_at_a_resume(callbacks, tmp_path):
    """The optimizer's groups have to be the same, also where it leaves out what isn't trained."""

    class Filters(Somebodys):
        def configure_optimizers(self):
            return torch.optim.SGD(
                [parameter for parameter in self.parameters() if parameter.requires_grad], lr=0.01, momentum=0.9
            )

    first, second = ([callback] if callback else [] for callback in callbacks)
    _, trainer = fit(None, *first, module=Filters(sequential))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    module = Filters(sequential)
    quiet_trainer(*second, max_epochs=2).fit(module, loader(), ckpt_path=tmp_path / "one.ckpt")
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_frozen_batch_norm_keeps_its_statistics_and_gives_back_its_modes():
    module = Somebodys(resnet)
    before = keys_and_weights(module)
    module.net.layer1.eval()
    modes = [submodule.training for submodule in module.modules()]
    fit(None, FreezeBatchNorm(exclude=("net.layer4*",)), module=module, limit_train_batches=1)
    after = module.state_dict()
    for name, value in before.items():
        is_norm = "bn" in name or "downsample.1" in name
        assert torch.equal(after[name], value) == (is_norm and "layer4" not in name), name
    assert [submodule.training for submodule in module.modules()] == modes
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_frozen_batch_norm_stays_frozen_where_the_step_calls_train():
    class Ported(Somebodys):
        def training_step(self, batch, batch_idx):
            self.net.train()
            copied = pickle.loads(pickle.dumps(copy.deepcopy(self.net)))  # copies aren't frozen
            assert copied.train()[1].training
            return super().training_step(batch, batch_idx)

    module = Ported(sequential)
    before = keys_and_weights(module.net[1])
    for _ in range(2):
        fit(None, FreezeBatchNorm(), module=module)
    after = module.net[1].state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert "train" not in vars(module.net[1])
    assert module.train().net[1].training


def test_frozen_batch_norm_ends_in_the_mode_that_a_step_asks_for():
    class Evaluates(Somebodys):
        def training_step(self, batch, batch_idx):
            self.net[1].eval()
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            pass

    modes = []
    for callbacks in ([], [FreezeBatchNorm()]):
        module = Evaluates(sequential)
        quiet_trainer(*callbacks, limit_train_batches=1).fit(module, loader(), loader())
        modes.append([part.training for part in module.modules()])
    assert modes[0] == modes[1]
    assert not module.net[1].training


def test_frozen_batch_norm_stays_frozen_where_the_backbone_is_unfrozen_later():
    class Finetuned(Somebodys):
        def __init__(self):
            super().__init__(sequential)
            self.backbone = self.net[:2]

        def configure_optimizers(self):
            return torch.optim.SGD((weight for weight in self.parameters() if weight.requires_grad), lr=0.1)

    module = Finetuned()
    before = keys_and_weights(module)
    finetuning = BackboneFinetuning(1, backbone_initial_lr=0.1, train_bn=False)
    quiet_trainer(finetuning, FreezeBatchNorm(), max_epochs=2).fit(module, loader())
    after = module.state_dict()
    assert not torch.equal(after["backbone.0.weight"], before["backbone.0.weight"])
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("backbone.1"))
    assert module.backbone[1].weight.requires_grad


def test_children_of_a_frozen_norm_follow_the_switches_of_mode():
    module = Somebodys(lambda: nn.Sequential(NormAndNoActivation(3), nn.Flatten(), nn.Linear(768, 3)))
    seen = []
    module.net[0].act.register_forward_hook(lambda act, *_: seen.append((act.training, module.net[0].training)))
    fit(None, FreezeBatchNorm(), module=module, limit_train_batches=1)
    assert seen == [(True, False)]


@pytest.mark.parametrize("batch_size", [4, 16])  # 16 is also the number of features
def test_instance_norm_of_features_is_refused_and_of_sequences_is_not(batch_size):
    inputs, labels = torch.randn(32, 3, 4), torch.arange(32) % 3

    def trained(*layers):
        module = Somebodys(lambda: nn.Sequential(*layers))
        batches = DataLoader(TensorDataset(inputs, labels), batch_size=batch_size)
        quiet_trainer(ReplaceNorm(norm="instance")).fit(module, batches)
        return module.net

    features = (nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))
    with pytest.raises(SettingError, match=r"exclude must name net\.2, whose inputs \(\d+, 16\) are \(batch, feat"):
        trained(*features)
    norm = trained(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.Flatten(), nn.Linear(64, 3))[1]
    sequences = torch.randn(2, 16, 4)
    expected = nn.functional.instance_norm(sequences, weight=norm.weight, bias=norm.bias, eps=norm.eps)
    torch.testing.assert_close(norm(sequences), expected)


def test_a_mean_over_all_batches_stays_one():
    make = lambda: nn.Sequential(nn.BatchNorm2d(3, momentum=None), nn.Flatten(), nn.Linear(768, 3))  # noqa: E731
    module, _ = fit(make, ReplaceNorm(norm="ghost_batch"), limit_train_batches=2, max_epochs=1)
    assert module.net[0].momentum is None
    inputs = torch.cat([batch[0] for batch in loader()])
    torch.testing.assert_close(module.net[0].running_mean, inputs.mean((0, 2, 3)))


class LowRank(nn.Linear):
    """A frozen weight and a trained update, as loralib's."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.weight.requires_grad = False
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.zeros(outputs, 2))

    def forward(self, inputs):
        return nn.functional.linear(inputs, self.weight + self.up @ self.down, self.bias)


@pytest.mark.parametrize("kind", [SpectralNormalization, WeightStandardization])
def test_a_subclass_that_computes_its_weight_is_refused_unless_it_is_named(kind):
    make = lambda: nn.Sequential(nn.Flatten(), LowRank(768, 3))  # noqa: E731
    with pytest.raises(SettingError, match=r"exclude must name net\.1, a LowRank, which computes with its weight in a"):
        fit(make, kind(types=("Linear",)))
    fit(make, kind(types=("LowRank",)))


@pytest.mark.parametrize("technique", [SpectralNormalization(), WeightStandardization(types=("Linear",))])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_weight_that_a_hook_computes_is_refused(technique):
    make = lambda: nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(768, 3)))  # noqa: E731
    with pytest.raises(SettingError, match=r"exclude must name net\.1, whose weight is computed from others by a hook"):
        fit(make, technique)


def test_a_subclass_that_drops_nothing_by_itself_is_left_out_of_drop_connect():
    make = lambda: nn.Sequential(nn.Flatten(), LowRank(768, 3))  # noqa: E731
    with pytest.raises(SettingError, match=r"include must choose modules of type Linear.*but chooses Flatten, LowRank"):
        fit(make, InsertDropConnect(include=("net.*",)))


class AsksForItsClass(nn.Module):
    """Chooses between two ways by the class of its norm, as blocks of model libraries do."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 3)

    def forward(self, inputs):
        return self.head(self.normalized(self.conv(inputs)).mean((2, 3)))

    def normalized(self, maps):
        return self.norm(maps) if isinstance(self.norm, nn.BatchNorm2d) else maps


class ReadsItsStatistics(AsksForItsClass):
    def normalized(self, maps):
        return self.norm(maps) - self.norm.running_mean.view(1, -1, 1, 1)


class AsksForAnyOfBoth(AsksForItsClass):
    def normalized(self, maps):
        return self.norm(maps) if isinstance(self.norm, (nn.BatchNorm2d, nn.GroupNorm)) else maps


class AsksElsewhere(AsksForItsClass):
    def normalized(self, maps):
        return self.norm(maps)

    def reset(self):
        assert isinstance(self.norm, nn.BatchNorm2d)


class AsksByAnotherName(AsksForItsClass):
    def normalized(self, maps):
        norm = self.norm
        return norm(maps) if isinstance(norm, nn.modules.batchnorm._BatchNorm) else maps


class LoopsOverItsChildren(AsksForItsClass):
    def forward(self, inputs):
        for layer in self.children():
            inputs = layer(inputs).relu().mean((2, 3)) if isinstance(layer, nn.BatchNorm2d) else layer(inputs)
        return inputs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (AsksByAnotherName, "AsksByAnotherName.normalized asks whether it is a nn.modules.batchnorm._BatchNorm"),
        (LoopsOverItsChildren, "LoopsOverItsChildren.forward asks whether it is a nn.BatchNorm2d"),
        (AsksForItsClass, "AsksForItsClass.normalized asks whether it is a nn.BatchNorm2d"),
        (ReadsItsStatistics, "ReadsItsStatistics.normalized reads its running_mean"),
    ],
)
def test_a_module_that_asks_what_its_norm_is_keeps_it(make, message):
    with pytest.raises(SettingError, match=f"exclude must name net.norm, a BatchNorm2d .*: .*{message}"):
        fit(make, ReplaceNorm(norm="group"))


class LoopsOverItsLayers(nn.Module):
    """PointNet's way: features last, and a BatchNorm that wants them first."""

    def __init__(self):
        super().__init__()
        norms = nn.Sequential(nn.BatchNorm1d(8))
        self.layers = nn.ModuleList([nn.Flatten(2), nn.Linear(256, 8), norms, nn.Linear(8, 3)])

    def forward(self, inputs):
        for layers in self.layers:
            for layer in layers if isinstance(layers, nn.Sequential) else (layers,):
                inputs = self.run(layer, inputs)
        return inputs.mean(1)

    def run(self, layer, inputs):
        if isinstance(layer, nn.BatchNorm1d):
            return layer(inputs.transpose(1, 2)).transpose(1, 2)
        return layer(inputs)


@pytest.mark.parametrize("norm", ["layer", "group", "ghost_batch"])
def test_a_module_that_asks_what_it_loops_over_keeps_its_norms(norm):
    with pytest.raises(SettingError, match=r"exclude must name net\.0\.layers\.2\.0, .*: LoopsOverItsLayers\.run asks"):
        fit(lambda: nn.Sequential(LoopsOverItsLayers()), ReplaceNorm(norm=norm))
    fit(LoopsOverItsLayers, ReplaceNorm(norm=nn.BatchNorm1d))


@pytest.mark.parametrize("make", [AsksForAnyOfBoth, AsksElsewhere])
def test_what_any_norm_answers_alike_is_no_obstacle(make):
    module, _ = fit(make, ReplaceNorm(norm="group"))
    assert isinstance(module.net.norm, nn.GroupNorm)


def test_a_norm_of_the_class_that_is_asked_for_is_put_in():
    module, _ = fit(AsksForItsClass, ReplaceNorm(norm=lambda width: nn.BatchNorm2d(width, eps=1e-3)))
    assert type(module.net.norm) is nn.BatchNorm2d


class AsksForItsStatistics(AsksForItsClass):
    def normalized(self, maps):
        return self.norm(maps) if hasattr(self.norm, "running_mean") else maps


class AsksForTheNameOfItsClass(AsksForItsClass):
    def normalized(self, maps):
        return self.norm(maps) if type(self.norm).__name__.startswith("BatchNorm") else maps


class KeepsItElsewhere(AsksForItsClass):
    def __init__(self):
        super().__init__()
        self.step = functools.partial(self.norm)

    def normalized(self, maps):
        return self.step(maps)


@pytest.mark.parametrize("make", [AsksForItsStatistics, AsksForTheNameOfItsClass, KeepsItElsewhere])
@pytest.mark.parametrize("validated", [False, True])
def test_a_new_norm_that_forward_passes_over_is_warned_of_by_name(make, validated):
    replacing = ReplaceNorm(norm="group")
    network = lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), make())  # noqa: E731
    module = Somebodys(network)
    if validated:  # this already replaces it
        quiet_trainer(replacing).test(module, loader(), verbose=False)
    with pytest.warns(UserWarning, match=r"layers that the training step doesn't run: net\.2\.norm\. Where forward"):
        fit(None, replacing, module=module)
    assert not module.net[1]._forward_hooks
    fit(network, ReplaceNorm(norm="group", exclude=("net.2.*",)))  # warnings are errors


class RunsMoreInValidation(Somebodys):
    def __init__(self):
        super().__init__(sequential)
        self.probe = nn.BatchNorm2d(3)

    def validation_step(self, batch, batch_idx):
        self.net(self.probe(batch[0]))


@pytest.mark.parametrize("settings", [{}, {"val_check_interval": 1}, {"check_val_every_n_epoch": 2, "max_epochs": 2}])
def test_a_new_norm_that_validation_alone_runs_is_not_warned_of(settings):
    module = RunsMoreInValidation()
    trainer = quiet_trainer(ReplaceNorm(norm="group"), num_sanity_val_steps=0, **settings)
    trainer.fit(module, loader(), loader())  # warnings are errors
    assert not module.probe._forward_hooks
