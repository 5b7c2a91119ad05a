"""The gradient monitor beside clipping, other techniques, and optimizers that change gradients."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import nn

from lightning_reg.callbacks import GradientCentralization, GradientClipping, GradientMonitor, GradientNoise, L2Penalty
from lightning_reg.settings import SettingError
from tests.callbacks.foreign import Manual, Saves, fit
from tests.conformance.problem import Setting, SomebodysModule, loader, network, resumable_loader, samples


def test_norms_are_measured_anew_where_somebody_changes_gradients_in_between():
    class Doubles(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            for parameter in pl_module.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(100)

    shown = fit(SomebodysModule(), GradientMonitor(), Doubles(), GradientClipping(max_norm=0.1))
    assert shown["grad/norm_clipped"] == pytest.approx(0.1, rel=1e-4)


def test_an_optimizer_that_changes_gradients_in_its_step_clips_nothing():
    class Nesterov(SomebodysModule):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=True)

    shown = fit(Nesterov(), GradientMonitor())
    assert shown["grad/norm_clipped"] == pytest.approx(shown["grad/norm"])
    assert shown["grad/clip_fraction"] == 0


@pytest.mark.parametrize("technique", [GradientCentralization(), L2Penalty(weight=0.5), GradientNoise(eta=0.01)])
@pytest.mark.parametrize("clips", [False, True])
def test_techniques_under_manual_optimization_are_no_clipping(technique, clips):
    class Clips(Manual):
        def before(self, optimizer):
            if clips:
                nn.utils.clip_grad_norm_(self.parameters(), 0.1)

    shown = fit(Clips(), GradientMonitor(), technique, max_epochs=1, limit_train_batches=1)
    assert shown["grad/clip_fraction"] == clips
    inputs, labels = (part[:8] for part in samples().tensors)
    model = network()
    F.cross_entropy(model(inputs), labels).backward()
    norm = (
        torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
        .norm()
        .item()
    )
    if clips:  # before the module clips, which it does before any technique
        assert shown["grad/norm"] == pytest.approx(norm, rel=1e-5)
    else:
        assert shown["grad/norm"] == pytest.approx(shown["grad/norm_clipped"])


def test_a_module_that_clips_by_hand_beside_clipping_is_refused():
    class Clips(Manual):
        def before(self, optimizer):
            self.clip_gradients(optimizer, gradient_clip_val=0.1)

    with pytest.raises(SettingError, match="clip_gradients must not be called in the training step"):
        fit(Clips(), GradientClipping())


@pytest.mark.filterwarnings("ignore:The gradient isn't finite in")
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_is_not_finite_is_not_clipped(fused):
    class Explodes(SomebodysModule):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (torch.inf if batch_idx == 2 else 1)

    for algorithm in ({"max_norm": 1e6}, {"algorithm": "percentile", "percentile": 100.0}):
        shown = fit(
            Explodes(fused=fused),
            GradientMonitor(every_n_steps=6),
            GradientClipping(**algorithm),
            setting=Setting("16-mixed", fused=fused),
            max_epochs=1,
        )
        assert shown["grad/clip_fraction"] == 0


def test_norms_of_other_orders_and_values_of_some_parameters_are_not_mixed_up():
    shown = fit(SomebodysModule(), GradientMonitor(), GradientClipping(max_norm=1e6, norm_type=1.0))
    assert shown["grad/norm_clipped"] == pytest.approx(shown["grad/norm"])
    clipping = GradientClipping(algorithm="value", max_value=100.0, include=("network.norm.bias",))
    shown = fit(SomebodysModule(), GradientMonitor(), clipping)
    assert shown["grad/clip_fraction"] == 0


def test_a_threshold_that_is_not_known_yet_is_not_shown():
    shown = fit(SomebodysModule(), GradientMonitor(), GradientClipping(algorithm="zscore", warmup_steps=100))
    assert "grad/clip_threshold" not in shown
    assert "grad/norm" in shown


def test_counts_and_latest_values_of_the_monitor_survive_a_resume(tmp_path):
    class Explodes(SomebodysModule):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (torch.inf if batch_idx == 2 else 1)

    def run(**settings):
        trainer = Setting("16-mixed").trainer(
            [GradientMonitor(every_n_steps=4), GradientClipping(max_norm=0.3), Saves(tmp_path / "a.ckpt", 8)],
            log_every_n_steps=9,
        )
        with pytest.warns(UserWarning, match="The gradient isn't finite in"):
            trainer.fit(Explodes(), resumable_loader(), loader(), **settings)
        return {tag: value.item() for tag, value in trainer.callback_metrics.items() if tag.startswith("grad")}

    whole = run()
    assert whole["grad/nonfinite_steps"] == 3
    assert run(ckpt_path=tmp_path / "a.ckpt") == whole


def test_another_length_of_history_keeps_the_latest_norms(tmp_path):
    first = GradientClipping(algorithm="percentile", history=5)
    trainer = Setting().trainer([first], max_epochs=1)
    trainer.fit(SomebodysModule(), loader(), loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    for history in (3, 50):
        longer = GradientClipping(algorithm="percentile", history=history)
        Setting().trainer([longer], max_epochs=1).fit(
            SomebodysModule(), loader(), loader(), ckpt_path=tmp_path / "a.ckpt"
        )
        (memory,) = longer.state_dict().values()
        (before,) = first.state_dict().values()
        kept = memory["norms"][~memory["norms"].isnan()]
        assert len(memory["norms"]) == history
        assert set(kept.tolist()) <= set(before["norms"].tolist())
        assert len(kept) == min(history, 5)
