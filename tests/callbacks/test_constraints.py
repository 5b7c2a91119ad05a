import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_reg.callbacks import MaxNorm, NonNegative, StrengthSchedule, UnitNorm
from lightning_reg.nn import StandardizedWeight
from lightning_reg.settings import SettingError
from tests.conformance.problem import Setting, SomebodysModule, loader
from tests.helpers import quiet_trainer


def fitted(*callbacks, module=None, **settings):
    module = module or SomebodysModule()
    quiet_trainer(*callbacks, **settings).fit(module, loader(), loader())
    return module.network.requires_grad_(False)


def test_constraints_hold_for_what_they_were_given_and_leave_the_rest():
    network = fitted(MaxNorm(max_norm=0.5, include=("network.head.*",)), NonNegative(include=("network.first.*",)))
    assert network.head.weight.norm(dim=1).max() == pytest.approx(0.5)
    assert network.first.weight.min() == 0
    assert network.hidden.weight.min() < 0
    assert network.first.bias.min() < 0  # spared by default
    everything = fitted(NonNegative(exclude_norm_and_bias=False))
    assert everything.first.bias.min() == 0


@pytest.mark.parametrize("group", ["output", "input"])
def test_unit_norm_by_what_leads_in_or_out(group):
    network = fitted(UnitNorm(group=group, include=("network.first.weight",)))
    lengths = network.first.weight.norm(dim=1 if group == "output" else 0)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_filters_and_transposed_filters_are_units():
    class Convolves(SomebodysModule):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv1d(1, 4, 3), nn.ConvTranspose1d(4, 2, 3)

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + self.up(self.down(batch[0][:, None])).square().mean()

    module = Convolves()
    fitted(UnitNorm(include=("up.*", "down.*")), module=module)
    for lengths in (module.down.weight.flatten(1).norm(dim=1), module.up.weight.norm(dim=(0, 2))):
        torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_constraints_work_with_lbfgs_and_manual_optimization():
    class Searches(SomebodysModule):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), max_iter=2)

    class Manual(SomebodysModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    for module in (Searches(), Manual()):
        assert fitted(NonNegative(), module=module).hidden.weight.min() == 0


def test_bound_follows_its_schedule():
    schedule = StrengthSchedule(start=2.0, end=1.0, kind="constant", begin=1)
    trainer = Setting().trainer([MaxNorm(max_norm=0.5, schedule=schedule)], max_epochs=2, log_every_n_steps=1)
    module = SomebodysModule()
    trainer.fit(module, loader(), loader())
    assert module.network.head.weight.detach().norm(dim=1).max() == pytest.approx(0.5)
    assert trainer.callback_metrics["schedule/max_norm"] == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaxNorm(max_norm=0.0), r"max_norm must be in \(0, ∞\], but is 0.0"),
        (lambda: MaxNorm(max_norm=float("nan")), r"max_norm must be in \(0, ∞\]"),
        (lambda: MaxNorm(group="row"), "group must be one of output, input"),
        (lambda: MaxNorm(schedule=StrengthSchedule()), r"schedule.start must be in \(0, ∞\)"),
        (lambda: UnitNorm(group="row"), "group must be one of output, input"),
        (lambda: fitted(NonNegative(include=("hed.*",))), r"include pattern 'hed\.\*' matches no parameter"),
        (lambda: fitted(UnitNorm(include=("*.bias",))), "less vectors leaves no parameter"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()


def pruned(layer):
    prune.l1_unstructured(layer, "weight", amount=0.3)


def standardized(layer):
    parametrize.register_parametrization(layer, "weight", StandardizedWeight())


def constrained(technique, compute):
    module = SomebodysModule()
    compute(module.network.first)
    return fitted(technique, module=module).first.weight


UNDONE = [
    (MaxNorm(max_norm=0.3), parametrizations.spectral_norm, "SpectralNorm"),
    (MaxNorm(max_norm=0.3), nn.utils.spectral_norm, "SpectralNorm"),
    (MaxNorm(max_norm=0.3), standardized, "StandardizedWeight"),
    (UnitNorm(), parametrizations.orthogonal, "Orthogonal"),
    (UnitNorm(), pruned, "L1Unstructured"),
    (NonNegative(), standardized, "StandardizedWeight"),
    (NonNegative(), parametrizations.weight_norm, "WeightNorm"),
    (NonNegative(), nn.utils.weight_norm, "WeightNorm"),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(("technique", "compute", "by"), UNDONE)
def test_what_the_layer_computes_its_weight_of_against_the_constraint_is_refused(technique, compute, by):
    with pytest.raises(SettingError, match=rf"exclude must name network\.first\.\S+ with .*, because {by} computes"):
        constrained(technique, compute)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("compute", [parametrizations.weight_norm, nn.utils.weight_norm, pruned])
def test_a_bound_holds_of_weights_that_are_computed_by_unit(compute):
    assert constrained(MaxNorm(max_norm=0.3), compute).norm(dim=1).max() <= 0.3 + 1e-6


@pytest.mark.parametrize("compute", [parametrizations.spectral_norm, nn.utils.spectral_norm, pruned])
def test_what_is_not_negative_stays_so_where_it_is_scaled(compute):
    assert constrained(NonNegative(), compute).min() >= 0
