"""Weights between the first and the last, against interpolations by hand in 64 bits."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.swa_utils import update_bn

from lightning_reg.callbacks import BestWeightsEarlyStopping, WiSEFT
from lightning_reg.settings import SettingError
from tests.callbacks.averaged import Normed, equal, fit, state, trained, val_loss
from tests.conformance.problem import Textbook, loader, resumable_loader
from tests.conformance.technique import Technique
from tests.helpers import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


def remember_start(model):
    model.start = [parameter.detach().double() for parameter in model.parameters()]


def between(model):
    return [
        0.4 * start + 0.6 * parameter.detach().double()
        for start, parameter in zip(model.start, model.parameters(), strict=True)
    ]


CONFORMANCE = {
    "WiSEFT": Technique(
        lambda: WiSEFT(alpha=0.6), lambda: WiSEFT(alpha=1.0), Textbook(change=remember_start, evaluated=between)
    ),
}


def by_hand(alpha, epochs=3):
    """Interpolates whole networks, with statistics by torch's own function."""
    start, (end, _) = Normed(), fit(max_epochs=epochs)
    module = Normed()
    with torch.no_grad():
        for place, one, other in zip(module.parameters(), start.parameters(), end.parameters(), strict=True):
            place.copy_((1 - alpha) * one.double() + alpha * other.double())
    module.eval()
    update_bn(loader(), module)
    return module


def test_evaluates_and_ends_between_with_statistics_of_its_own(tmp_path):
    module, trainer = fit(WiSEFT(alpha=0.3), max_epochs=3)
    expected = by_hand(0.3)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=0, atol=1e-5)
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(val_loss(expected), abs=1e-5)
    trainer.save_checkpoint(tmp_path / "between.ckpt")
    (tested,) = quiet_trainer().test(Normed(), loader(), ckpt_path=tmp_path / "between.ckpt", verbose=False)
    assert tested["test_loss"] == pytest.approx(val_loss(expected), abs=1e-5)


def test_training_goes_on_with_the_trained_weights():
    without, _ = fit()
    average = WiSEFT(alpha=0.3)
    fit(average)
    held = {name: trained(average)[name] for name, _ in without.named_parameters()}
    assert equal(held, dict(without.named_parameters()))


def test_no_share_is_the_start_to_the_bit_and_what_is_excluded_is_the_trained():
    start, (end, _) = Normed(), fit()
    module, _ = fit(WiSEFT(alpha=0.0, exclude="net.3.*"))
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, (end if name.startswith("net.3") else start).get_parameter(name))


def test_what_is_frozen_before_the_first_evaluation_is_between_as_well():
    class Freezes(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.net[0].requires_grad_(trainer.current_epoch == 0)

        def on_train_epoch_end(self, trainer, pl_module):
            self.end = pl_module.net[0].weight.detach().clone()

    module, freezes = Normed(), Freezes()
    start = module.net[0].weight.detach().clone()
    fit(WiSEFT(alpha=0.25), freezes, module=module, max_epochs=2, limit_val_batches=0)
    torch.testing.assert_close(module.net[0].weight, 0.75 * start + 0.25 * freezes.end)


def test_a_sweep_measures_whole_networks_and_leaves_the_best():
    average = WiSEFT(sweep=(0.0, 0.5, 0.9, 1.0), monitor="val_loss")
    module, trainer = fit(average)
    expected = {alpha: val_loss(by_hand(alpha)) for alpha in average.sweep}
    assert {alpha: metrics["val_loss"] for alpha, metrics in average.swept.items()} == pytest.approx(expected, abs=1e-5)
    best = min(expected, key=expected.__getitem__)
    assert average.last_result.alpha == best
    assert val_loss(module) == pytest.approx(expected[best], abs=1e-5)
    assert trainer.callback_metrics["wise_ft/0.9/val_loss"].item() == pytest.approx(expected[0.9], abs=1e-5)
    assert equal(state(fit(WiSEFT(alpha=0.5, sweep=(0.0, 1.0)))[0]), state(fit(WiSEFT(alpha=0.5))[0]))


def test_the_best_weights_are_those_between():
    stopping = BestWeightsEarlyStopping("val_loss", patience=10)
    module, _ = fit(stopping, WiSEFT(alpha=0.5), max_epochs=4)
    assert val_loss(module) == pytest.approx(stopping.best_score.item(), abs=1e-6)


@pytest.mark.parametrize("step", [4, 6, 11])
def test_resumed_anywhere_is_uninterrupted(step, tmp_path):
    def run(**how):
        saves = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, enable_version_counter=False)
        average = WiSEFT(alpha=0.7, sweep=(0.2, 0.7), monitor="val_loss")
        module, _ = fit(average, saves, train=resumable_loader, enable_checkpointing=True, **how)
        return state(module), average.swept

    whole, swept = run()
    (tmp_path / f"step={step}.ckpt").rename(tmp_path / "start.ckpt")
    resumed, again = run(ckpt_path=tmp_path / "start.ckpt")
    assert equal(resumed, whole)
    assert again == swept


def test_a_copy_of_the_callback_has_its_settings():
    average = WiSEFT(alpha=0.7, sweep=[0.2], exclude="head.*")
    fit(WiSEFT(alpha=0.7))
    assert vars(copy.deepcopy(average))["sweep"] == (0.2,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\], but is 1.5"),
        ({"sweep": (0.5, -1.0)}, r"sweep must be in \[0, 1\], but is -1.0"),
        ({"sweep": 5}, "sweep must be a list, but is 5"),
        ({"monitor": "val_loss"}, "sweep must have shares to choose from with monitor 'val_loss', but is empty"),
        ({"buffers": "average"}, "buffers must be one of recompute, copy, but is 'average'"),
        ({"mode": "best"}, "mode must be one of min, max, but is 'best'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        WiSEFT(**settings)


def test_a_sweep_needs_something_to_measure():
    with pytest.raises(SettingError, match="sweep must be left out where the fit has no validation data"):
        fit(WiSEFT(sweep=(0.5,)), limit_val_batches=0)
    with pytest.raises(SettingError, match="exclude pattern 'nothing' matches no parameter"):
        fit(WiSEFT(exclude="nothing"))
    with pytest.raises(SettingError, match="monitor must be logged by validation, but is 'loss'"):
        fit(WiSEFT(sweep=(0.5,), monitor="loss"))
