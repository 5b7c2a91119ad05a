"""The moving average, and the faults of others that it doesn't have."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_reg.callbacks import ExponentialMovingAverage
from lightning_reg.settings import SettingError
from tests.callbacks.averaged import Normed, by_hand, equal, fit, state, trained, val_loss
from tests.conformance.problem import BATCHES, resumable_loader

# Lightning says so of every checkpoint that a trainer without its ModelCheckpoint loads.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
TOLERANCE = {"rtol": 0, "atol": 1e-6}


def torchs_average(decay, *, every=1, start=0, epochs=3):
    """By torch's AveragedModel, buffers averaged too."""
    kept = []

    def after_step(module, step):
        if not kept:
            kept.append(AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay)))
        if step >= start and (step - start + 1) % every == 0:
            kept[0].update_parameters(module)

    trained = by_hand(after_step=after_step, epochs=epochs)
    return kept[0].module, trained


def assert_same_weights(one, other):
    torch.testing.assert_close(list(one.parameters()), list(other.parameters()), **TOLERANCE)


def test_one_update_an_epoch_takes_the_weights_that_end_it():
    """Else the first validation would see the weights of the first step alone."""
    module, _ = fit(ExponentialMovingAverage(decay=0.9, every_n_steps=BATCHES), max_epochs=1)
    without, _ = fit(max_epochs=1)
    assert_same_weights(module, without)


@pytest.mark.parametrize(("every", "start"), [(1, 0), (3, 0), (2, 7)])
def test_equals_torchs_averaged_model(every, start):
    module, _ = fit(ExponentialMovingAverage(decay=0.8, warmup=False, every_n_steps=every, start_step=start))
    assert_same_weights(module, torchs_average(0.8, every=every, start=start)[0])


def test_begins_with_an_epoch():
    module, _ = fit(ExponentialMovingAverage(decay=0.8, warmup=False, start_epoch=1))
    assert_same_weights(module, torchs_average(0.8, start=BATCHES)[0])


@pytest.mark.parametrize(("settings", "decay"), [({"half_life": 3.0}, 0.5 ** (1 / 3)), ({"half_life": 0.5}, 0.25)])
def test_half_life_in_steps_in_epochs_and_as_a_share_of_the_run(settings, decay):
    expected = torchs_average(decay)[0]
    in_epochs = {"half_life": settings["half_life"] / BATCHES, "half_life_unit": "epoch"}
    of_the_run = {"half_life": settings["half_life"] / BATCHES / 3, "half_life_unit": "run"}  # of three epochs
    for given in (settings, in_epochs, of_the_run):
        module, _ = fit(ExponentialMovingAverage(**given, warmup=False))
        assert_same_weights(module, expected)


def test_half_life_counts_steps_whatever_lies_between_updates():
    module, _ = fit(ExponentialMovingAverage(half_life=4.0, warmup=False, every_n_steps=2))
    assert_same_weights(module, torchs_average(0.5**0.5, every=2)[0])


def test_statistics_are_averaged_and_counters_are_not():
    statistics = []

    def after_step(module, step):
        now = torch.cat([module.net[1].running_mean, module.net[1].running_var])
        statistics.append(now if not statistics else 0.8 * statistics[-1] + 0.2 * now)

    by_hand(after_step=after_step)
    module, _ = fit(ExponentialMovingAverage(decay=0.8, warmup=False))
    norm = module.net[1]
    torch.testing.assert_close(torch.cat([norm.running_mean, norm.running_var]), statistics[-1], **TOLERANCE)
    assert norm.num_batches_tracked == 3 * BATCHES
    assert torch.equal(module.constant, torch.tensor([0.1, 0.2]))


def test_copied_statistics_are_those_of_the_trained_weights():
    module, _ = fit(ExponentialMovingAverage(decay=0.8, buffers="copy"))
    torch.testing.assert_close(module.net[1].running_var, by_hand().net[1].running_var, **TOLERANCE)


def test_validation_measures_the_average():
    expected, trained = torchs_average(0.8)
    for name, buffer in expected.named_buffers():
        buffer.copy_(dict(trained.named_buffers())[name])
    _, trainer = fit(ExponentialMovingAverage(decay=0.8, warmup=False, buffers="copy"))
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(val_loss(expected), abs=1e-6)


def test_before_it_begins_trained_weights_are_validated_and_stay():
    without, plain = fit()
    with pytest.warns(UserWarning, match="has no effect: start_step is 1000"):
        with_it, trainer = fit(ExponentialMovingAverage(start_step=1000))
    assert equal(state(with_it), state(without))
    assert trainer.callback_metrics["val_loss"] == plain.callback_metrics["val_loss"]


def test_trains_on_with_the_trained_weights():
    """Validation in the middle of epochs, too, with several batches to a step."""
    settings = {"val_check_interval": 2, "accumulate_grad_batches": 4}
    without, _ = fit(**settings)
    average = ExponentialMovingAverage(validate="both", decay=0.8)
    fit(average, ExponentialMovingAverage(decay=0.5), **settings)
    assert average.is_in
    held = {name: trained(average)[name] for name, _ in without.named_parameters()}
    assert equal(held, dict(without.named_parameters()))  # the trained weights, while the module has the average


@pytest.mark.parametrize("style", ["parametrization", "hook"])
def test_spectral_norm_holds_for_the_average(style, tmp_path):
    normalize = nn.utils.parametrizations.spectral_norm if style == "parametrization" else nn.utils.spectral_norm

    def module():
        made = Normed(rate=0.5)
        torch.manual_seed(1)
        normalize(made.net[0])
        return made

    def norm(made):
        made.eval()
        made(torch.zeros(1, 6))  # the older style computes the weight in forward
        return torch.linalg.matrix_norm(made.net[0].weight.detach(), 2).item()

    norms = []

    class Watches(Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            norms.append(norm(pl_module))

    saves = ModelCheckpoint(tmp_path, "last")
    fitted, _ = fit(
        ExponentialMovingAverage(decay=0.9), Watches(), saves, module=module(), enable_checkpointing=True, max_epochs=4
    )
    loaded = module()
    loaded.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    for length in (*norms[1:], norm(fitted), norm(loaded)):
        assert length == pytest.approx(1, abs=1e-5)
    # Without the callback training would have gone elsewhere: power iteration goes on with its own vectors.
    plain, _ = fit(module=module(), max_epochs=4)
    raw, average = module(), ExponentialMovingAverage(decay=0.9)
    fit(average, module=raw, max_epochs=4)
    held = trained(average)
    vector = next(name for name in held if name.endswith("_u"))
    assert torch.equal(held[vector], dict(plain.named_buffers())[vector])


@pytest.mark.parametrize("name", ["orthogonal", "weight_norm"])
def test_other_parametrizations_hold_for_the_average(name):
    module = Normed(rate=0.5)
    module.net[3] = nn.Linear(12, 12)
    getattr(nn.utils.parametrizations, name)(module.net[3])
    fit(ExponentialMovingAverage(decay=0.9), module=module)
    weight, parts = module.net[3].weight.detach(), module.net[3].parametrizations["weight"]
    if name == "orthogonal":
        torch.testing.assert_close(weight @ weight.T, torch.eye(12), rtol=0, atol=1e-5)
    else:
        torch.testing.assert_close(weight.norm(dim=1, keepdim=True), parts.original0.detach().abs())


def test_sixteen_bits_are_averaged_in_thirty_two(tmp_path):
    def settings():
        return {"precision": "bf16-true", "train": resumable_loader, "max_epochs": 3}

    exact = []

    def after_step(module, step):
        weight = module.net[0].weight.detach().float()
        exact.append(weight.clone() if not exact else 0.99 * exact[-1] + 0.01 * weight)

    class Follows(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            after_step(pl_module, 0)

    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    average = ExponentialMovingAverage(decay=0.99, warmup=False)
    module, _ = fit(Follows(), average, saves, enable_checkpointing=True, **settings())
    assert module.net[0].weight.dtype == torch.bfloat16
    assert torch.equal(module.net[0].weight, exact[-1].bfloat16())
    resumed, _ = fit(
        ExponentialMovingAverage(decay=0.99, warmup=False), ckpt_path=tmp_path / "epoch=0.ckpt", **settings()
    )
    assert equal(state(resumed), state(module))


def test_costs_one_copy_of_what_is_trained():
    module = Normed()
    module.net[0].requires_grad_(False)
    average = ExponentialMovingAverage(buffers="copy")
    fit(average, module=module)
    held = sum(weight.numel() * weight.element_size() for weight in trained(average).values())
    assert held == sum(
        parameter.numel() * parameter.element_size() for parameter in module.parameters() if parameter.requires_grad
    )


def test_what_is_unfrozen_later_joins():
    class Unfreezes(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.net[0].requires_grad_(trainer.current_epoch >= 1)

    average = ExponentialMovingAverage(decay=0.8, warmup=False)
    module, _ = fit(average, Unfreezes())
    for name in ("net.0.weight", "net.3.weight"):
        assert not torch.equal(module.get_parameter(name), trained(average)[name])


def test_several_optimizers_in_a_batch_count_once():
    class Manual(Normed):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[index].parameters(), lr=0.1) for index in (0, 3)]

    average = ExponentialMovingAverage()
    fit(average, module=Manual())
    assert average.updates == 3 * BATCHES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": -0.1}, r"decay must be in \[0, 1\], but is -0.1"),
        ({"decay": 1.1}, r"decay must be in \[0, 1\], but is 1.1"),
        ({"half_life": -1.0}, r"half_life must be in \[0, ∞\), but is -1.0"),
        ({"decay": 0.9, "half_life": 5.0}, "decay must be left out with half_life 5.0, but is 0.9"),
        ({"half_life_unit": "year"}, "half_life_unit must be one of step, epoch, run, but is 'year'"),
        ({"every_n_steps": 0}, "every_n_steps must be a whole number of at least 1, but is 0"),
        ({"start_step": -1}, "start_step must be a whole number of at least 0, but is -1"),
        ({"start_epoch": -1}, "start_epoch must be a whole number of at least 0, but is -1"),
        ({"buffers": "mean"}, "buffers must be one of average, copy, recompute, but is 'mean'"),
        ({"validate": "raw"}, "validate must be one of averaged, both, but is 'raw'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        ExponentialMovingAverage(**settings)


def test_lightnings_average_beside_it_is_refused():
    with pytest.raises(SettingError, match="callbacks must not have EMAWeightAveraging"):
        fit(ExponentialMovingAverage(), EMAWeightAveraging())
