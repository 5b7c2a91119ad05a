"""Two passes with different dropout, in one batch, which are to predict the same."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import (
    AugmentationConsistency,
    BatchMixing,
    InsertDropout,
    RDrop,
    RegMixup,
    SharpnessAwareMinimization,
)
from lightning_reg.core.batches import repeated
from lightning_reg.functional.loss.output_penalties import symmetric_divergence
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.conformance.problem import SomebodysModule, Textbook, loader
from tests.conformance.technique import Technique
from tests.helpers import quiet_trainer


class Uneven(nn.Module):
    """In the place of dropout, whose numbers nobody could repeat: other factors for other rows."""

    def forward(self, inputs):
        values = torch.tanh(inputs)
        if not self.training:
            return values
        return values * torch.linspace(0.4, 1.6, len(values), device=values.device).to(values.dtype).unsqueeze(1)


def uneven(model):
    model.act = Uneven()


def divergence(p, q):
    """½(KL(p‖q) + KL(q‖p)), of probabilities."""
    return ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2


def term(model, inputs, logits):
    rows = logits.float().softmax(1)
    half = len(rows) // 2
    return 0.7 * torch.stack([divergence(rows[i], rows[half + i]) for i in range(half)]).mean()


def twice(model, inputs, labels):
    return torch.cat([inputs, inputs]), lambda logits: F.cross_entropy(logits, torch.cat([labels, labels]))


CONFORMANCE = {
    "RDrop": Technique(
        lambda: RDrop(weight=0.7), lambda: RDrop(weight=0.0), Textbook(term=term, mix=twice), prepare=uneven
    ),
}


def test_value_and_gradient_are_those_of_torchs_own_divergence_in_float64():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(5, 4, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    p, q = one.log_softmax(1), other.log_softmax(1)
    expected = (
        F.kl_div(p, q, reduction="batchmean", log_target=True) + F.kl_div(q, p, reduction="batchmean", log_target=True)
    ) * 0.3
    value = symmetric_divergence(one, other, 0.6)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value, (one, other)), torch.autograd.grad(expected, (one, other), retain_graph=True)
    )


def test_a_masked_class_and_ignored_positions_add_nothing():
    one, other = (
        torch.tensor([[1.0, 0.0, -torch.inf], [5.0, 0.0, 1.0]]),
        torch.tensor([[0.5, 0.0, -torch.inf], [0.0, 5.0, 1.0]]),
    )
    counted = torch.tensor([True, False])
    value = symmetric_divergence(one, other, 1.0, counted=counted)
    torch.testing.assert_close(value, symmetric_divergence(one[:1, :2], other[:1, :2], 1.0))


class Batches(SomebodysModule):
    """Remembers its latest batch."""

    def training_step(self, batch, batch_idx):
        self.batch = batch
        return super().training_step(batch, batch_idx)


def fit(module, *callbacks, **settings):
    trainer = quiet_trainer(*callbacks, **{"limit_train_batches": 1, "log_every_n_steps": 1, **settings})
    trainer.fit(module, loader(), loader())
    return trainer.callback_metrics


def test_inserted_dropout_differs_between_the_copies():
    module = Batches()
    metrics = fit(module, RDrop(weight=1.0), InsertDropout(p=0.4, include=("*act",), seed=3))
    inputs, labels = module.batch
    assert inputs[:8].equal(inputs[8:])
    assert labels[:8].equal(labels[8:])
    assert metrics["penalty/r_drop"] > 0


@pytest.mark.parametrize("first", [True, False], ids=["before mixing", "behind mixing"])
def test_both_copies_are_mixed_alike_whatever_the_order(first):
    module, drop, mixing = Batches(prepare=uneven), RDrop(weight=1.0), BatchMixing(Mixup(alpha=0.7), seed=3)
    metrics = fit(module, *((drop, mixing) if first else (mixing, drop)))
    inputs, _ = module.batch
    torch.testing.assert_close(inputs[:8], inputs[8:])
    assert not inputs[:8].equal(next(iter(loader()))[0])
    with torch.no_grad():  # the divergence is counted once, though the loss is computed twice
        expected = term(module, inputs, Batches(prepare=uneven).network.train()(inputs)) / 0.7
    torch.testing.assert_close(metrics["penalty/r_drop"], expected)


def test_a_network_in_which_nothing_is_stochastic_is_refused():
    with pytest.raises(SettingError, match="both passes predict the same"):
        fit(SomebodysModule(), RDrop(weight=1.0))


def test_a_dropout_that_never_drops_is_refused():
    def idle(model):
        model.act = nn.Sequential(nn.Tanh(), nn.Dropout(0.0))

    with pytest.raises(SettingError, match="both passes predict the same"):
        fit(SomebodysModule(prepare=idle), RDrop(weight=1.0))


@pytest.mark.parametrize("first", [0, 1], ids=["at once", "later"])
def test_logits_of_an_odd_number_of_samples_are_refused(first):
    class LeavesOneOut(SomebodysModule):
        def training_step(self, batch, batch_idx):
            left_out = int(batch_idx >= first)
            return F.cross_entropy(self.network(batch[0])[left_out:], batch[1][left_out:])

    with pytest.raises(SettingError, match=r"must hand on the logits of all samples, .* but has 15, an odd number"):
        fit(LeavesOneOut(prepare=uneven), RDrop(weight=1.0), limit_train_batches=2)


def test_a_batch_without_one_row_a_sample_is_refused():
    with pytest.raises(SettingError, match=r"one row a sample, .* tensors of shapes \(8, 6\), \(3,\)"):
        repeated([torch.zeros(8, 6), torch.zeros(3)], 2, technique="RDrop")
    with pytest.raises(SettingError, match="but has none: it is a str"):
        repeated("text", 2, technique="RDrop")
    packed = nn.utils.rnn.pack_sequence([torch.zeros(2, 3)])
    with pytest.raises(SettingError, match=r"one row a sample, .* but has a PackedSequence; pack it in the module"):
        repeated({"inputs": packed, "labels": torch.zeros(1)}, 2, technique="RDrop")


@pytest.mark.parametrize(
    "make",
    [
        lambda: RDrop(weight=1.0),
        RegMixup,
        lambda: AugmentationConsistency(augment=[nn.Identity()], views=2),
    ],
    ids=["RDrop", "RegMixup", "AugmentationConsistency"],
)
def test_a_step_that_takes_batches_of_one_size_alone_is_refused_and_other_failures_are_the_users(make):
    class OneSize(SomebodysModule):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.network(batch[0].sigmoid()) + torch.zeros(8, 3), batch[1])

    class NeedsMemory(SomebodysModule):
        def training_step(self, batch, batch_idx):
            if len(batch[0]) > 8:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().training_step(batch, batch_idx)

    class Fails(SomebodysModule):
        def training_step(self, batch, batch_idx):
            raise ValueError(f"no batch of {len(batch[0])}")

    class Asserts(SomebodysModule):
        def training_step(self, batch, batch_idx):
            if len(batch[0]) != 8:
                raise AssertionError
            return super().training_step(batch, batch_idx)

    def images():
        return DataLoader(TensorDataset(torch.rand(16, 6), torch.arange(16) % 3), batch_size=8)

    def fit(module):
        quiet_trainer(make()).fit(module, images(), images())

    with pytest.raises(SettingError, match=r"must take batches of any size with \w+, .* RuntimeError: The size of"):
        fit(OneSize(prepare=uneven))
    with pytest.raises(SettingError, match=r"fails with such a batch alone: AssertionError$"):
        fit(Asserts(prepare=uneven))
    with pytest.raises(torch.OutOfMemoryError):
        fit(NeedsMemory(prepare=uneven))
    with pytest.raises(ValueError, match="no batch of 16"):
        fit(Fails(prepare=uneven))


class Graphs:
    """A batch's part that moves between devices, but has no rows that could be repeated."""

    def __init__(self, nodes):
        self.nodes = nodes

    def to(self, *args, **kwargs):
        return Graphs(self.nodes.to(*args, **kwargs))


@dataclasses.dataclass
class Drawn:
    """The same as a data class that no constructor gives its tensors."""

    nodes: torch.Tensor = dataclasses.field(init=False)


def drawn(nodes):
    part = Drawn()
    part.nodes = nodes
    return part


@pytest.mark.parametrize("made_of", [Graphs, drawn])
@pytest.mark.parametrize(
    ("technique", "words"),
    [
        (
            lambda: RDrop(weight=1.0),
            "made of tensors that have one row a sample, so that RDrop can repeat them, but has a",
        ),
        (lambda: SharpnessAwareMinimization(fraction=0.5), "fraction must be 1 where a batch has a"),
    ],
)
def test_what_cannot_be_repeated_or_chosen_by_rows_is_named(technique, words, made_of):
    """A network that takes batches of any size isn't told that it doesn't."""

    class OfGraphs(SomebodysModule):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.network(batch["parts"][0].nodes), batch["labels"])

        def validation_step(self, batch, batch_idx):
            pass

    def collate(samples):
        inputs, labels = zip(*samples, strict=True)
        return {"parts": (made_of(torch.stack(inputs)),), "labels": torch.stack(labels)}

    data = DataLoader(TensorDataset(torch.rand(16, 6), torch.arange(16) % 3), batch_size=8, collate_fn=collate)
    with pytest.raises(SettingError, match=rf"{words} {made_of.__name__.capitalize()}.* fails"):
        quiet_trainer(technique()).fit(OfGraphs(prepare=uneven), data, data)


def test_bad_settings_are_refused_at_once():
    with pytest.raises(SettingError, match=r"weight must be in \[0, ∞\), but is -1"):
        RDrop(weight=-1)
