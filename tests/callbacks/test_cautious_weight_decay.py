"""Weight decay where the optimizer moves toward zero as well."""

import copy
import math

import pytest
import torch

from lightning_reg.callbacks import CautiousWeightDecay
from lightning_reg.functional.weights.cautious_decay import corrected_rate, decay_cautiously_, decay_timescale
from lightning_reg.settings import SettingError
from tests.conformance.problem import BATCHES, LEARNING_RATE, SomebodysModule, Textbook, loader, matrices
from tests.conformance.technique import Technique
from tests.helpers import quiet_trainer


def keep(model, step, memory):
    model.before = [weight.detach().clone() for weight in matrices(model)]


def decay(model, share):
    for weight, old in zip(matrices(model), model.before, strict=True):
        moved = old - weight  # the optimizer's own step
        weight.sub_(LEARNING_RATE * 0.3 * old * (moved.sign() * old.sign() >= 0))


CONFORMANCE = {
    "CautiousWeightDecay": Technique(
        lambda: CautiousWeightDecay(weight=0.3),
        lambda: CautiousWeightDecay(weight=0.0),
        Textbook(on_gradients=keep, after_step=decay),
    )
}


@pytest.mark.parametrize("share", [0.25, torch.tensor(0.25, dtype=torch.float64)])
def test_it_is_the_papers_update_in_float64(share):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(200, dtype=torch.float64, generator=generator)
    update = torch.randn(200, dtype=torch.float64, generator=generator)
    update[:20] = 0  # no step agrees with everything
    weight = before - update
    decay_cautiously_([weight], [before], share)
    expected = [x - (u + 0.25 * x if u * x >= 0 else u) for x, u in zip(before.tolist(), update.tolist(), strict=True)]
    torch.testing.assert_close(weight, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_weights_in_16_bits_decay_only_where_the_step_agrees(dtype):
    """A weight of 1e-3 times a step of one unit in its last place is too small for float16."""
    before = torch.tensor([1e-3, 1e-3, -1e-3, -1e-3], dtype=dtype)
    moved = torch.nextafter(before, torch.tensor([1.0, 0.0, -1.0, 0.0], dtype=dtype))
    weight = moved.clone()
    decay_cautiously_([weight], [before], 0.5)
    torch.testing.assert_close(weight, torch.where(torch.tensor([False, True] * 2), moved - before / 2, moved))


class Stands(SomebodysModule):
    """Has no gradient but zeros, and a learning rate that falls."""

    def training_step(self, batch, batch_idx):
        return 0.0 * super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)]


def test_where_a_normalization_follows_decay_falls_with_the_square_of_the_rate():
    module = Stands()
    before = copy.deepcopy(module.network)
    decay = CautiousWeightDecay(weight=0.3, corrected=("network.first.*",))
    quiet_trainer(decay, max_epochs=3, limit_val_batches=0).fit(module, loader(), loader())
    for name, power in (("first", 2), ("head", 1)):
        left = math.prod((1 - 0.3 * LEARNING_RATE * 0.5 ** (power * epoch)) ** BATCHES for epoch in range(3))
        torch.testing.assert_close(module.network.get_submodule(name).weight, before.get_submodule(name).weight * left)


def test_a_corrected_rate_and_a_timescale():
    assert corrected_rate(0.02, 0.1) == pytest.approx(0.004)
    assert corrected_rate(torch.tensor(0.02), torch.tensor(0.1)).item() == pytest.approx(0.004)
    assert corrected_rate(0.0, 0.0) == corrected_rate(torch.tensor(0.0), torch.tensor(0.0)) == 0
    assert decay_timescale(1e-3, 0.05, 200) == pytest.approx(100)
    decay = CautiousWeightDecay(weight=0.3, corrected=("nowhere",))
    with pytest.raises(SettingError, match="corrected pattern 'nowhere' matches no parameter"):
        quiet_trainer(decay, limit_val_batches=0).fit(Stands(), loader(), loader())


def test_negative_strength_is_refused():
    with pytest.raises(SettingError, match=r"weight must be in \[0, ∞\), but is -0.1"):
        CautiousWeightDecay(weight=-0.1)
