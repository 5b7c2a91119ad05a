"""Lookahead beside what the conformance suite asks: any optimizer, several of them, and what is saved."""

import pytest
import torch
from torch import nn

from lightning_reg.callbacks import Lookahead
from lightning_reg.settings import SettingError
from tests.callbacks.averaged import Normed, by_hand, equal, fit, state
from tests.conformance.problem import BATCHES, resumable_loader

TOLERANCE = {"rtol": 0, "atol": 1e-6}


def looking_ahead(module, k, alpha):
    slow = [parameter.detach().clone() for parameter in module.parameters()]

    def after_step(module, step):
        if (step + 1) % k == 0:
            with torch.no_grad():
                for back, fast in zip(slow, module.parameters(), strict=True):
                    back.add_(alpha * (fast - back))
                    fast.copy_(back)

    return slow, after_step


OPTIMIZERS = {
    "Adam": lambda weights: torch.optim.Adam(weights, lr=0.01),
    "RMSprop": lambda weights: torch.optim.RMSprop(weights, lr=0.001),
    "AdamW fused": lambda weights: torch.optim.AdamW(weights, lr=0.01, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stands_around_any_optimizer(name):
    expected = Normed(make_optimizer=OPTIMIZERS[name])
    _, after_step = looking_ahead(expected, 5, 0.5)
    by_hand(after_step=after_step, module=expected)
    module, _ = fit(Lookahead(), module=Normed(make_optimizer=OPTIMIZERS[name]))
    torch.testing.assert_close(list(module.parameters()), list(expected.parameters()), **TOLERANCE)


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
def test_a_fit_without_an_optimizer_is_refused_for_what_it_lacks():
    with pytest.raises(SettingError, match="configure_optimizers must return an optimizer with Lookahead"):
        fit(Lookahead(), module=Normed(make_optimizer=lambda _: None))


def test_slow_weights_are_in_the_checkpoint(tmp_path):
    expected = Normed()
    slow, after_step = looking_ahead(expected, 4, 0.5)
    by_hand(after_step=after_step, module=expected)
    _, trainer = fit(Lookahead(k=4))
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    saved = torch.load(tmp_path / "after.ckpt", weights_only=True)["lightning_reg"]["Lookahead_1"]
    assert saved["steps"] == {0: 3 * BATCHES}
    for (name, _), weight in zip(expected.named_parameters(), slow, strict=True):
        torch.testing.assert_close(saved["slow"][0][name], weight, **TOLERANCE)


def test_resumed_after_the_fit_is_uninterrupted(tmp_path):
    whole, _ = fit(Lookahead(k=4), max_epochs=4, train=resumable_loader)
    _, trainer = fit(Lookahead(k=4), max_epochs=1, train=resumable_loader)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    resumed, _ = fit(Lookahead(k=4), max_epochs=4, train=resumable_loader, ckpt_path=tmp_path / "first.ckpt")
    assert equal(state(resumed), state(whole))


def test_each_optimizers_steps_are_its_own():
    class Manual(Normed):
        """The second steps every other time."""

        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            first.zero_grad()
            second.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
            first.step()
            if batch_idx % 2:
                second.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[index].parameters(), lr=0.1) for index in (0, 3)]

    ahead = Lookahead(k=3)
    fit(ahead, module=Manual())
    assert ahead.kept["steps"] == {0: 3 * BATCHES, 1: 3 * BATCHES // 2}
    assert set(ahead.kept["slow"][1]) == {"net.3.weight", "net.3.bias"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k must be a whole number of at least 1, but is 0"),
        ({"alpha": -0.5}, r"alpha must be in \[0, 1\], but is -0.5"),
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\], but is 1.5"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        Lookahead(**settings)
