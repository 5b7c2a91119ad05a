"""A penalty on the size of logits: MaxSup and z-loss."""

import pytest
import torch
import torch.nn.functional as F

from lightning_reg.callbacks import BatchMixing, LogitPenalty
from lightning_reg.functional.loss.output_penalties import max_logit_penalty, normalized_logits, z_loss
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.conformance.problem import SomebodysModule, Textbook, loader
from tests.conformance.technique import Technique
from tests.helpers import quiet_trainer


def maxsup(model, inputs, logits):
    values = logits.float()
    return 0.3 * torch.stack([row.max() - row.sum() / len(row) for row in values]).mean()


def squared_log_partition(model, inputs, logits):
    return 0.2 * (logits.float().exp().sum(1).log() ** 2).mean()


def of_one_length(model, inputs, labels):
    def loss_of(logits):
        values = logits.float()
        scaled = torch.stack([row / (0.5 * (row.square().sum().sqrt() + 1e-7)) for row in values])
        return 0.25 * F.cross_entropy(logits, labels) + 0.75 * F.cross_entropy(scaled, labels)

    return inputs, loss_of


CONFORMANCE = {
    "LogitPenalty": Technique(
        lambda: LogitPenalty(weight=0.3), lambda: LogitPenalty(weight=0.0), Textbook(term=maxsup)
    ),
    "LogitPenalty z": Technique(
        lambda: LogitPenalty(kind="z", weight=0.2),
        lambda: LogitPenalty(kind="z", weight=0.0),
        Textbook(term=squared_log_partition),
    ),
    "LogitPenalty norm": Technique(
        lambda: LogitPenalty(kind="norm", weight=0.75, temperature=0.5),
        lambda: LogitPenalty(kind="norm", weight=0.0),
        Textbook(mix=of_one_length),
    ),
}


def of_max(logits):
    return max_logit_penalty(logits, 1.0)


def of_z(logits):
    return z_loss(logits, 1.0)


def test_values_and_gradients_are_those_of_the_formula_in_float64():
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    largest = torch.zeros_like(logits)
    largest[range(5), logits.argmax(1)] = 1
    (gradient,) = torch.autograd.grad(of_max(logits), logits)
    torch.testing.assert_close(gradient, (largest - 1 / 4) / 5)
    (gradient,) = torch.autograd.grad(of_z(logits), logits)
    partition = logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(gradient, 2 * partition.log() * logits.exp() / partition / 5)
    assert torch.autograd.gradcheck(of_max, logits)
    assert torch.autograd.gradcheck(of_z, logits)


@pytest.mark.parametrize("penalty", [max_logit_penalty, z_loss])
def test_positions_that_do_not_count_add_nothing(penalty):
    logits = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))  # (N, C, d)
    counted = torch.tensor([[True] * 6, [False] * 6, [True] * 3 + [False] * 3])
    chosen = logits.movedim(1, 2)[counted]
    torch.testing.assert_close(penalty(logits, 0.7, counted=counted), penalty(chosen, 0.7))
    assert penalty(logits, 0.7, counted=torch.zeros_like(counted)) == 0


def test_a_masked_class_is_left_out():
    logits = torch.tensor([[2.0, 1.0, -torch.inf]])
    assert max_logit_penalty(logits, 1.0) == 0.5
    assert z_loss(logits, 1.0) == z_loss(logits[:, :2], 1.0)


def test_sixteen_bits_are_computed_in_thirty_two():
    logits = torch.full((1, 3), 40.0, dtype=torch.bfloat16)  # e^40 squared, and its log, are coarse in 16 bits
    assert z_loss(logits, 1.0).dtype == torch.float32
    torch.testing.assert_close(z_loss(logits, 1.0), (40 + torch.tensor(3.0).log()) ** 2)


class Normalizes(SomebodysModule):
    """Hands log-probabilities to ``nll_loss``."""

    def training_step(self, batch, batch_idx):
        return F.nll_loss(self.network(batch[0]).log_softmax(1), batch[1])


def fit(module, callback):
    trainer = quiet_trainer(callback, log_every_n_steps=1, limit_train_batches=1)
    trainer.fit(module, loader(), loader())
    return trainer.callback_metrics


def test_log_probabilities_have_a_largest_one_but_no_partition():
    assert fit(Normalizes(), LogitPenalty(weight=0.1))["penalty/logit"] > 0
    with pytest.raises(SettingError, match="the training step doesn't call cross_entropy, whose input LogitPenalty"):
        fit(Normalizes(), LogitPenalty(kind="z", weight=0.1))


def test_normalized_logits_have_one_length_and_a_masked_class_none_in_float64():
    logits = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch.testing.assert_close(normalized_logits(logits, 0.2), F.normalize(logits, dim=1) / 0.2, rtol=1e-6, atol=0)
    torch.testing.assert_close(normalized_logits(1000 * logits, 0.2), normalized_logits(logits, 0.2), rtol=1e-6, atol=0)
    assert torch.autograd.gradcheck(lambda values: normalized_logits(values, 0.2), logits)
    masked = torch.tensor([[3.0, 4.0, -torch.inf]])
    assert normalized_logits(masked, 1.0).tolist()[0] == pytest.approx([0.6, 0.8, -torch.inf])
    assert normalized_logits(masked.half(), 1.0).dtype == torch.float32
    F.cross_entropy(
        normalized_logits(zeros := torch.zeros(2, 3, requires_grad=True), 0.04), torch.tensor([0, 1])
    ).backward()
    assert zeros.grad.isfinite().all()


class OneByOne(SomebodysModule):
    """Computes the loss of each sample alone."""

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        logits = self.network(inputs)
        return torch.stack([F.cross_entropy(row, label) for row, label in zip(logits, labels, strict=True)]).mean()


class InATransform(SomebodysModule):
    """Maps the loss of a sample over the batch."""

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        return torch.func.vmap(F.cross_entropy)(self.network(inputs), labels).mean()


def test_logits_of_one_sample_are_normalized_as_those_of_a_batch():
    weights = []
    for module in (SomebodysModule(), OneByOne()):
        trainer = quiet_trainer(LogitPenalty(kind="norm", weight=0.75, temperature=0.5), max_epochs=1)
        trainer.fit(module, loader(), loader())
        weights.append(module.network.head.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["max", "z", "norm"])
def test_logits_within_a_transform_are_refused(kind):
    with pytest.raises(
        SettingError, match=r"the loss must be computed outside of torch\.func's transforms with LogitPe"
    ):
        quiet_trainer(LogitPenalty(kind=kind, weight=0.1), max_epochs=1).fit(InATransform(), loader(), loader())


class Weighs(SomebodysModule):
    """Uses half of its loss."""

    def training_step(self, batch, batch_idx):
        return 0.5 * super().training_step(batch, batch_idx)


def test_whatever_becomes_of_the_loss_becomes_of_that_of_normalized_logits():
    """So a step by half of it is a step of half the length."""
    ways = []
    for module in (SomebodysModule(), Weighs()):
        before = module.network.head.weight.detach().clone()
        trainer = quiet_trainer(
            LogitPenalty(kind="norm", weight=1.0), limit_train_batches=1, limit_val_batches=0, max_epochs=1
        )
        trainer.fit(module, loader(), loader())
        ways.append(module.network.head.weight.detach() - before)
    torch.testing.assert_close(ways[1], 0.5 * ways[0], rtol=1e-4, atol=1e-7)


def test_beside_mixing_it_counts_once():
    torch.manual_seed(0)
    mixing = BatchMixing(Mixup(alpha=1.0))
    for together in ([mixing, LogitPenalty(weight=0.1)], [LogitPenalty(weight=0.1), mixing]):
        seen = []
        module = SomebodysModule()
        module.network.register_forward_hook(lambda *call, seen=seen: seen.append(call[-1].detach()))
        trainer = quiet_trainer(
            *together, log_every_n_steps=1, limit_train_batches=1, limit_val_batches=0, max_epochs=1
        )
        trainer.fit(module, loader(), loader())
        expected = max_logit_penalty(seen[0], 0.1)
        torch.testing.assert_close(trainer.callback_metrics["penalty/logit"], expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, r"weight must be in \[0, ∞\), but is -1.0"),
        ({"weight": 0.1, "kind": "l2"}, "kind must be"),
        ({"weight": 1.1, "kind": "norm"}, r"weight times the schedule's factor must be in \[0, 1\], but is 1.1"),
        ({"weight": 1.0, "kind": "norm", "temperature": 0.0}, r"temperature must be in \(0, ∞\)"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(SettingError, match=message):
        LogitPenalty(**settings)
