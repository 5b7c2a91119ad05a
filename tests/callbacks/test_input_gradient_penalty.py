"""A penalty on the loss's gradient by the inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_reg.callbacks import AdversarialTraining, InputGradientPenalty, JacobianPenalty
from lightning_reg.functional.loss.input_penalties import input_gradient_penalty
from lightning_reg.settings import SettingError
from tests.conformance.problem import Setting, SomebodysModule, Textbook, loader
from tests.conformance.technique import Technique
from tests.helpers import quiet_trainer

REENTRANT = [InputGradientPenalty(weight=0.1), JacobianPenalty(weight=0.1), AdversarialTraining(eps=0.1)]


@torch.no_grad()
def away_from_the_border(model):
    """The penalty's gradient jumps where a ReLU's input changes its sign, which in 16 bits is a matter of rounding."""
    model.hidden.bias.fill_(3.0)


def differentiable(model, inputs, labels):
    def loss_of(logits):
        model.losses = F.cross_entropy(logits, labels, reduction="none")
        return model.losses.mean()

    return inputs.clone().requires_grad_(), loss_of


def term(model, inputs, logits):
    """One backward pass for all samples, none of which sees another: in 16 bits each would be rounded by itself."""
    (gradient,) = torch.autograd.grad(model.losses.sum(), inputs, create_graph=True)
    return 0.5 * torch.stack([(row**2).sum() for row in gradient]).mean()


CONFORMANCE = {
    "InputGradientPenalty": Technique(
        lambda: InputGradientPenalty(weight=0.5),
        lambda: InputGradientPenalty(weight=0.0),
        Textbook(term=term, mix=differentiable),
        prepare=away_from_the_border,
        compiles=False,
    ),
}


def test_value_and_gradient_are_those_of_the_formula_in_float64():
    """Of logistic regression: the gradient by x is (σ(w·x) - y) w."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 3, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(3, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.tensor([0.0, 1, 1, 0, 1], dtype=torch.float64)
    loss = F.binary_cross_entropy_with_logits(inputs @ weight, labels)
    expected = 0.3 * (((inputs @ weight).sigmoid() - labels).square() * weight.square().sum()).mean()
    value = input_gradient_penalty(loss, inputs, 0.3)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value, weight, retain_graph=True), torch.autograd.grad(expected, weight)
    )


def of_one(batch):
    return DataLoader([batch], batch_size=None)


class Batches(SomebodysModule):
    """Has its batch in a dictionary, and looks at it afterwards."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)


def test_the_users_batch_stays_as_it_is():
    inputs, labels = next(iter(loader()))
    batch = {"x": inputs, "y": labels}
    trainer = quiet_trainer(InputGradientPenalty(weight=0.1, input_key="x"), log_every_n_steps=1, limit_val_batches=0)
    trainer.fit(Batches(), of_one(batch), of_one(batch))
    assert trainer.callback_metrics["penalty/input_gradient"] > 0
    assert batch["x"] is inputs
    assert not inputs.requires_grad


class OfTensors(SomebodysModule):
    """Has batches that are tensors."""

    def training_step(self, batch, batch_idx):
        return self.network(batch).square().mean()


def test_a_batch_that_is_a_tensor_is_its_only_part():
    batch, model = next(iter(loader()))[0], SomebodysModule().network
    trainer = quiet_trainer(InputGradientPenalty(weight=0.1), log_every_n_steps=1, limit_val_batches=0)
    before = batch.clone()
    trainer.fit(OfTensors(), of_one(batch), of_one(batch))
    inputs = before.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(inputs).square().mean(), inputs)
    expected = 0.1 * (len(inputs) * gradient).square().sum() / len(inputs)
    torch.testing.assert_close(trainer.callback_metrics["penalty/input_gradient"], expected)
    assert batch.equal(before)


class OfWholeNumbers(SomebodysModule):
    """Reads whole numbers."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0].float(), batch[1]), batch_idx)


class OfNoInput(SomebodysModule):
    """Has a loss that its inputs don't take part in."""

    def training_step(self, batch, batch_idx):
        return self.network.head.weight.square().sum()


class OfAlignments(SomebodysModule):
    """Has a loss without a second derivative."""

    def training_step(self, batch, batch_idx):
        count = len(batch[1])
        logs = self.network(batch[0]).log_softmax(1).expand(5, -1, -1)
        return F.ctc_loss(logs, torch.ones(count, 1, dtype=torch.long), [5] * count, [1] * count)


class Checkpointed(SomebodysModule):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(checkpoint(self.network, batch[0], use_reentrant=True), batch[1])


@pytest.mark.parametrize(
    ("module", "inputs", "message"),
    [
        (OfAlignments(), torch.ones(8, 6), "can be differentiated twice with InputGradientPenalty, .* aten::_ctc_loss"),
        (OfWholeNumbers(), torch.ones(8, 6, dtype=torch.int64), "finds torch.int64 of shape"),
        (OfNoInput(), torch.ones(8, 6), "inputs must be what the loss is computed of"),
        (SomebodysModule(compiled=True), torch.ones(8, 6), "the module must not be compiled with InputGradientPenalty"),
    ],
)
def test_what_can_not_be_differentiated_is_refused(module, inputs, message):
    batches = of_one((inputs, torch.zeros(8, dtype=torch.int64)))
    trainer = quiet_trainer(InputGradientPenalty(weight=0.1), limit_val_batches=0)
    with pytest.raises(SettingError, match=message):
        trainer.fit(module, batches, batches)


@pytest.mark.parametrize("technique", REENTRANT, ids=lambda technique: type(technique).__name__)
def test_reentrant_checkpoints_are_refused_by_name(technique):
    name = type(technique).__name__
    with pytest.raises(SettingError, match=f"use_reentrant must be False .* checkpointed with {name}"):
        quiet_trainer(technique, limit_val_batches=0).fit(Checkpointed(), loader(), loader())


class OfManyPositions(SomebodysModule):
    """Has gradients as small as those of a mean over a quarter of a million positions."""

    def training_step(self, batch, batch_idx):
        return 2.0**-18 * super().training_step(batch, batch_idx)


def test_small_gradients_are_scaled_in_sixteen_bits_as_those_of_the_loss_are():
    values = []
    for setting in (Setting("16-mixed"), Setting()):
        trainer = setting.trainer(
            [InputGradientPenalty(weight=1.0)], limit_train_batches=1, limit_val_batches=0, log_every_n_steps=1
        )
        trainer.fit(OfManyPositions(prepare=away_from_the_border), loader(), loader())
        values.append(trainer.callback_metrics["penalty/input_gradient"])
    torch.testing.assert_close(*values, rtol=0.02, atol=0)  # a dozen roundings, each by 2⁻¹¹, and the square


def test_bad_settings_are_refused_at_once():
    with pytest.raises(SettingError, match=r"weight must be in \[0, ∞\), but is -1"):
        InputGradientPenalty(weight=-1)
