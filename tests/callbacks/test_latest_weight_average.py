"""The mean of the latest snapshots, against one that is kept by hand in 64 bits."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_reg.callbacks import LatestWeightAverage
from lightning_reg.functional.weights.averaging import latest_mean_
from lightning_reg.settings import SettingError
from tests.callbacks.averaged import Normed, by_hand, equal, fit, state, trained, val_loss
from tests.conformance.problem import BATCHES, Textbook, resumable_loader
from tests.conformance.technique import Technique

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


def keep_latest(model, _):
    """Three snapshots, two steps apart, remembered on the model itself."""
    model.steps = getattr(model, "steps", 0) + 1
    if model.steps % 2 == 0:
        snapshot = [parameter.detach().double() for parameter in model.parameters()]
        model.latest = [*getattr(model, "latest", []), snapshot][-3:]


def mean_or_trained(model):
    if not hasattr(model, "latest"):
        return list(model.parameters())
    return [torch.stack(values).mean(0) for values in zip(*model.latest, strict=True)]


CONFORMANCE = {
    "LatestWeightAverage": Technique(
        lambda: LatestWeightAverage(window=3, every_n_steps=2),
        lambda: LatestWeightAverage(window=1, every_n_steps=1),
        Textbook(after_step=keep_latest, evaluated=mean_or_trained),
    ),
}


def latest_by_hand(window, every, epochs=3):
    latest = []

    def after_step(module, step):
        if (step + 1) % every == 0:
            latest.append([parameter.detach().double() for parameter in module.parameters()])

    by_hand(epochs=epochs, after_step=after_step)
    return [torch.stack(values).mean(0) for values in zip(*latest[-window:], strict=True)]


@pytest.mark.parametrize(("window", "every"), [(1, 1), (4, 1), (3, 4), (40, 2)])
def test_equals_the_mean_by_hand_also_where_the_window_isnt_full(window, every):
    module, _ = fit(LatestWeightAverage(window=window, every_n_steps=every))
    expected = latest_by_hand(window, every)
    torch.testing.assert_close([p.double() for p in module.parameters()], expected, rtol=0, atol=1e-6)


def test_spans_a_hundredth_of_the_run_where_nothing_is_said():
    average = LatestWeightAverage(window=2)
    fit(average, max_epochs=100)  # 600 steps: three a snapshot
    assert average.updates == 100 * BATCHES // 3
    short = LatestWeightAverage(window=2)
    fit(short)
    assert short.updates == 3 * BATCHES


def test_validation_measures_the_mean_with_statistics_of_its_own():
    module, trainer = fit(LatestWeightAverage(window=6, every_n_steps=1))
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(val_loss(module), abs=1e-6)
    copied, _ = fit(LatestWeightAverage(window=6, every_n_steps=1, buffers="copy"))
    assert not torch.equal(module.net[1].running_mean, copied.net[1].running_mean)
    torch.testing.assert_close(list(module.parameters()), list(copied.parameters()), rtol=0, atol=0)


def test_training_goes_on_with_the_trained_weights():
    without, _ = fit()
    average = LatestWeightAverage(window=3, every_n_steps=2)
    fit(average)
    held = {name: trained(average)[name] for name, _ in without.named_parameters()}
    assert equal(held, dict(without.named_parameters()))


@pytest.mark.parametrize("step", [3, 6, 11])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_resumed_anywhere_is_uninterrupted(step, precision, tmp_path):
    def run(**how):
        saves = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, enable_version_counter=False)
        average = LatestWeightAverage(window=4, every_n_steps=2)
        settings = {"train": resumable_loader, "enable_checkpointing": True, "precision": precision}
        module, _ = fit(average, saves, **settings, **how)
        return state(module)

    whole = run()
    (tmp_path / f"step={step}.ckpt").rename(tmp_path / "start.ckpt")
    assert equal(run(ckpt_path=tmp_path / "start.ckpt"), whole)


def test_what_is_unfrozen_later_joins():
    module = Normed()
    module.net[3].requires_grad_(False)

    class Thaws(LatestWeightAverage):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.net[3].requires_grad_(trainer.current_epoch >= 2)

    average = Thaws(window=3, every_n_steps=2)
    fit(average, module=module)
    assert "net.3.weight" in trained(average)
    assert not torch.equal(module.net[3].weight, trained(average)["net.3.weight"])


def test_sixteen_bits_are_averaged_in_thirty_two():
    weights = [torch.tensor([256.0, 1.0]).bfloat16(), torch.tensor([258.0, 2.0]).bfloat16()]
    mean = torch.zeros(2)
    latest_mean_([mean], [[weight] for weight in weights])
    assert torch.equal(mean, torch.tensor([257.0, 1.5]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window must be a whole number of at least 1, but is 0"),
        ({"every_n_steps": 0}, "every_n_steps must be a whole number of at least 1, but is 0"),
        ({"buffers": "mean"}, "buffers must be one of average, copy, recompute, but is 'mean'"),
        ({"validate": "raw"}, "validate must be one of averaged, both, but is 'raw'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        LatestWeightAverage(**settings)


def test_a_share_of_a_run_without_end_is_refused():
    with pytest.raises(SettingError, match="every_n_steps must be given where nobody knows"):
        fit(LatestWeightAverage(), max_epochs=-1)
