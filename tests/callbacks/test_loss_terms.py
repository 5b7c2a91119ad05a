"""Penalties on activations and on predictions, on foreign modules."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_reg.callbacks import ActivityPenalty, ConfidencePenalty, DecorrelationPenalty, StrengthSchedule
from lightning_reg.functional.loss.output_penalties import entropy
from lightning_reg.settings import SettingError
from tests.conformance.problem import SomebodysModule, loader, network, samples
from tests.helpers import quiet_trainer


def fit(module, *callbacks, **settings):
    trainer = quiet_trainer(*callbacks, log_every_n_steps=1, limit_train_batches=1, **settings)
    trainer.fit(module, loader(), loader())
    return trainer.callback_metrics


def first_batch():
    return [part[:8] for part in samples().tensors]


class Recurrent(SomebodysModule):
    """Rows of the image over time."""

    def __init__(self, batch_first=True):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(2, 3, batch_first=batch_first)

    def outputs(self, inputs):
        sequence = inputs.view(-1, 3, 2)
        return self.lstm(sequence if self.lstm.batch_first else sequence.transpose(0, 1))[0]

    def training_step(self, batch, batch_idx):
        outputs = self.outputs(batch[0])
        last = outputs[:, -1] if self.lstm.batch_first else outputs[-1]
        return F.cross_entropy(last, batch[1])


@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers_tell_which_dimension_is_time(batch_first):
    penalty = ActivityPenalty(l2=2.0, temporal=1.0, include=("lstm",), time_dim=2)
    logged = fit(Recurrent(batch_first), penalty)
    outputs = Recurrent(batch_first).outputs(first_batch()[0])
    change = outputs.diff(dim=1 if batch_first else 0).square().mean()
    torch.testing.assert_close(logged["penalty/activity"], (2 * outputs.square().mean() + change).detach())


def test_share_is_that_of_loss_plus_penalty_and_the_logged_loss_stays():
    inputs, labels = first_batch()
    loss = F.cross_entropy(network()(inputs), labels).detach()
    schedule = StrengthSchedule(kind="constant", end=0.5)
    logged = fit(SomebodysModule(), ConfidencePenalty(weight=0.4, schedule=schedule))
    value = -0.2 * entropy(network()(inputs)).detach()
    torch.testing.assert_close(logged["penalty/confidence"], value)
    torch.testing.assert_close(logged["penalty/confidence_share"], value.abs() / (value.abs() + loss))
    torch.testing.assert_close(logged["train_loss"], loss)
    assert logged["schedule/confidence"] == 0.5


def test_layers_that_are_replaced_between_epochs_are_penalized():
    class Replaces(SomebodysModule):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Linear(6, 3), nn.Tanh())
            nn.init.zeros_(self.network[0].weight)
            nn.init.ones_(self.network[0].bias)

        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.network[1] = nn.Sigmoid()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    logged = fit(Replaces(), ActivityPenalty(l2=1.0), max_epochs=2)
    torch.testing.assert_close(logged["penalty/activity"], torch.tensor(1.0).sigmoid().square())


def test_default_is_every_activation_module_and_a_shared_one_counts_for_each_call():
    class Shares(SomebodysModule):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def training_step(self, batch, batch_idx):
            hidden = self.relu(self.network.first(batch[0]))
            return F.cross_entropy(self.network.head(self.relu(self.network.hidden(hidden))), batch[1])

    logged = fit(Shares(), ActivityPenalty(l1=1.0))
    model = network()
    first = model.first(first_batch()[0]).relu()
    expected = first.mean() + model.hidden(first).relu().mean()
    torch.testing.assert_close(logged["penalty/activity"], expected.detach())


def test_what_is_computed_again_for_the_backward_pass_is_not_counted_again():
    class Checkpoints(SomebodysModule):
        def training_step(self, batch, batch_idx):
            features = checkpoint(self.network.features, batch[0], use_reentrant=False)
            return F.cross_entropy(self.network.head(features), batch[1])

    penalty = ActivityPenalty(l1=1.0)
    logged = [fit(module, penalty, max_epochs=2) for module in (Checkpoints(), SomebodysModule())]
    torch.testing.assert_close(logged[0]["penalty/activity"], logged[1]["penalty/activity"])
    assert penalty.session is None


class Half(nn.Module):
    def forward(self, inputs):
        return {"first": (inputs / 2, None), "second": inputs}


@pytest.mark.filterwarnings("ignore:ActivityPenalty had no effect")
def test_of_several_outputs_the_first_tensor_counts():
    class Several(SomebodysModule):
        def __init__(self):
            super().__init__()
            self.halved = Half()

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.network(2 * self.halved(batch[0])["first"][0]), batch[1])

    logged = fit(Several(), ActivityPenalty(l1=1.0, include=("halved",)))
    torch.testing.assert_close(logged["penalty/activity"], first_batch()[0].abs().mean() / 2)


@pytest.mark.parametrize("compiled", [False, True])
def test_logits_are_seen_in_a_criterion_and_as_log_probabilities(compiled):
    class Criterion(SomebodysModule):
        criterion = nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 3.0]))

        def training_step(self, batch, batch_idx):
            return self.criterion(self.network(batch[0]), batch[1])

    class Negative(SomebodysModule):
        def training_step(self, batch, batch_idx):
            return F.nll_loss(self.network(batch[0]).log_softmax(1), batch[1])

    expected = -0.1 * entropy(network()(first_batch()[0])).detach()
    for cls in (Criterion, Negative):
        logged = fit(cls(compiled), ConfidencePenalty(weight=0.1))
        torch.testing.assert_close(logged["penalty/confidence"], expected)


class Manual(SomebodysModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Regresses(SomebodysModule):
    def training_step(self, batch, batch_idx):
        return self.network(batch[0]).square().mean()


class InPlace(SomebodysModule):
    def training_step(self, batch, batch_idx):
        return self.network.head(self.network.first(batch[0]).relu_()).square().mean()


class WithoutActivations(SomebodysModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(6, 3)


class Deep(SomebodysModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(*(nn.Linear(6, 6) for _ in range(12)))


class Sums(nn.Module):
    def forward(self, hidden):
        return hidden.sum(1)


class Named(nn.Module):
    def forward(self, hidden):
        return "hidden"


class OfSums(SomebodysModule):
    def __init__(self):
        super().__init__()
        self.sums, self.named = Sums(), Named()

    def training_step(self, batch, batch_idx):
        logits = self.network(batch[0])
        self.named(logits)
        return F.cross_entropy(logits, batch[1]) + self.sums(logits).mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (ActivityPenalty, "l1, l2 or temporal must be given; 0 switches the penalty off"),
        (lambda: ActivityPenalty(l1=-1.0), r"l1 must be in \[0, ∞\), but is -1.0"),
        (lambda: ActivityPenalty(temporal=float("nan")), r"temporal must be in \[0, ∞\)"),
        (lambda: ConfidencePenalty(weight=-1.0), r"weight must be in \[0, ∞\), but is -1.0"),
        (lambda: fit(Manual(), ConfidencePenalty(weight=1.0)), "automatic_optimization must be True with Confidence"),
        (lambda: fit(Manual(), ActivityPenalty(l1=1.0)), "automatic_optimization must be True with ActivityPenalty"),
        (lambda: fit(Regresses(), ConfidencePenalty(weight=1.0)), "calls neither cross_entropy nor nll_loss"),
        (lambda: fit(WithoutActivations(), ActivityPenalty(l1=1.0)), "include must name modules, because there is no"),
        (lambda: fit(Deep(), ActivityPenalty(l1=1.0)), r"ReLU among network, (network\.\d, ){6}network\.6 and 5 more$"),
        (
            lambda: fit(OfSums(), DecorrelationPenalty(weight=1.0, include=("network.act", "sums"))),
            r"must have samples and features, but have shape \(8,\), in the output of sums$",
        ),
        (
            lambda: fit(OfSums(), ActivityPenalty(l1=1.0, include=("named",))),
            "include must name modules that return tensors, but named returns str$",
        ),
        (
            lambda: fit(SomebodysModule(), ActivityPenalty(l1=1.0, include=("network.atc",))),
            r"include pattern 'network\.atc' matches no module; there are network\.act",
        ),
        (
            lambda: fit(InPlace(), ActivityPenalty(l1=1.0, include=("network.first",))),
            r"that of network\.first is changed in place by what comes behind it, such as ReLU\(inplace=True\)",
        ),
        (
            lambda: fit(SomebodysModule(), ActivityPenalty(l1=1.0, include=("network.unused",))),
            "include must name modules that the training step runs, but none of them did",
        ),
    ],
)
def test_bad_use_is_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()


def test_a_term_of_another_kind_of_module_is_untouched_in_evaluation():
    module = SomebodysModule()
    penalty = ActivityPenalty(l1=1.0)
    trainer = quiet_trainer(penalty)
    trainer.fit(module, loader(), loader())
    before = trainer.validate(module, loader(), verbose=False)
    after = quiet_trainer().validate(module, loader(), verbose=False)
    assert before == after


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter`")
@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument")
def test_a_step_that_fetches_its_own_batches_is_penalized_and_logged():
    class Fetches(SomebodysModule):
        def training_step(self, dataloader_iter):
            (inputs, labels), _, _ = next(dataloader_iter)
            return F.cross_entropy(self.network(inputs), labels)

    logged = fit(Fetches(), ActivityPenalty(l1=1.0), ConfidencePenalty(weight=0.4))
    features = network().features(first_batch()[0])
    torch.testing.assert_close(logged["penalty/activity"], features.abs().mean().detach())
    expected = -0.4 * entropy(network()(first_batch()[0])).detach()
    torch.testing.assert_close(logged["penalty/confidence"], expected)


class Attends(SomebodysModule):
    """Uses the weights of its attention's output layer, which never runs by itself, and a frozen part."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.frozen = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.spare = nn.ReLU()

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            inputs = self.frozen(batch[0])
        attended, _ = self.attention(inputs[:, None], inputs[:, None], inputs[:, None])
        return F.cross_entropy(self.network(attended[:, 0]), batch[1])


@pytest.mark.parametrize(
    "make", [lambda **k: ActivityPenalty(l2=0.1, **k), lambda **k: DecorrelationPenalty(weight=0.1, **k)]
)
def test_modules_that_were_named_but_never_run_are_warned_of_once(make):
    include = ("*out_proj", "frozen.1", "network.first")
    with pytest.warns(UserWarning, match="does nothing to what wasn't run with gradients in") as told:
        fit(Attends(), make(include=include), max_epochs=2)
    (said,) = (str(warning.message) for warning in told if "does nothing" in str(warning.message))
    assert said.endswith("the training step: attention.out_proj, frozen.1")


def test_modules_that_nobody_named_may_never_run():
    logged = fit(Attends(), ActivityPenalty(l2=0.1))  # warnings are errors
    module = Attends()
    inputs = module.frozen(first_batch()[0])[:, None]
    features = module.network.features(module.attention(inputs, inputs, inputs)[0][:, 0])
    torch.testing.assert_close(logged["penalty/activity"], 0.1 * features.square().mean().detach())


def test_modules_that_are_not_watched_yet_are_not_warned_of():
    class Stops(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    schedule = StrengthSchedule(kind="constant", begin=1)
    penalty = ActivityPenalty(l2=0.1, include=("*out_proj", "network.first"), schedule=schedule)
    fit(Attends(), penalty, Stops(), max_epochs=2)
    with pytest.warns(UserWarning, match=r"wasn't run with gradients in the training step: attention\.out_proj"):
        fit(Attends(), penalty, max_epochs=2)


def test_modules_that_are_trained_in_turn_are_not_warned_of():
    class Turns(SomebodysModule):
        def training_step(self, batch, batch_idx):
            self.seen = [self.network.first(batch[0])]
            hidden = self.seen[0] if batch_idx % 2 else self.seen[0].relu()
            self.seen += [self.network.head(hidden)] if batch_idx else []
            return F.cross_entropy(self.seen[-1] if batch_idx else hidden[:, :3], batch[1])

    module = Turns()
    trainer = quiet_trainer(ActivityPenalty(l2=0.1, include=("network.first", "network.head")), log_every_n_steps=1)
    trainer.fit(module, loader(), loader())
    expected = 0.1 * sum(outputs.square().mean() for outputs in module.seen)
    assert len(module.seen) == 2
    torch.testing.assert_close(trainer.callback_metrics["penalty/activity"], expected.detach())
