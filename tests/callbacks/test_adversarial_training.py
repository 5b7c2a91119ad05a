"""Training on inputs that are changed within bounds so that the loss rises."""

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_reg.callbacks import AdversarialTraining, BatchMixing, RDrop, StrengthSchedule
from lightning_reg.functional.loss.adversarial import random_start, range_of, sign_step
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.conformance.problem import BATCH_SIZE, SomebodysModule, Textbook, loader, samples
from tests.conformance.technique import OFF, Technique
from tests.helpers import quiet_trainer


def labels_known(model, inputs, labels):
    """The clean loss; what the term needs is left on the model."""

    def loss_of(logits):
        model.loss, model.labels = F.cross_entropy(logits, labels), labels
        return model.loss

    return inputs.clone().requires_grad_(), loss_of


def attack(eps, steps, size):
    def term(model, inputs, logits):
        """Half of the loss's rise at the adversarial inputs; a power of two before the gradient changes no sign."""
        seen = samples().tensors[0]
        seen = seen if model.epoch else seen[: (model.batch + 1) * BATCH_SIZE]
        low, high = seen.min(0).values, seen.max(0).values
        clean, loss = inputs.detach(), model.loss
        attacked = inputs
        for step in range(steps):
            (gradient,) = torch.autograd.grad(loss * 1024, attacked, retain_graph=step == 0)
            moved = (attacked + size * gradient.sign()).detach()
            moved = torch.minimum(torch.maximum(moved, clean - eps), clean + eps)
            attacked = torch.minimum(torch.maximum(moved, low), high).requires_grad_()
            loss = F.cross_entropy(model(attacked), model.labels)
        return 0.5 * loss - 0.5 * model.loss

    return Textbook(term=term, mix=labels_known)


CONFORMANCE = {
    "AdversarialTraining": Technique(
        lambda: AdversarialTraining(eps=0.3), lambda: AdversarialTraining(eps=0.0), attack(0.3, 1, 0.3)
    ),
    "AdversarialTraining of steps": Technique(
        lambda: AdversarialTraining(eps=0.3, steps=2, step_size=0.2),
        lambda: AdversarialTraining(eps=0.3, steps=2, schedule=OFF),
        attack(0.3, 2, 0.2),
        second=lambda: AdversarialTraining(eps=0.0),
    ),
}


def test_a_step_raises_the_loss_of_a_linear_model_as_much_as_any_change_in_the_box():
    """There the sign's step is the worst one: the loss's argument falls by ε ‖w‖₁ (Goodfellow et al.)."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 4, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(4, dtype=torch.float64, generator=generator)
    signs = torch.tensor([1.0, -1, 1, 1, -1], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(F.softplus(-signs * (inputs @ weight)).sum(), inputs)
    moved = sign_step(inputs.detach(), gradient, inputs.detach(), eps=0.3, step_size=0.3)
    torch.testing.assert_close(signs * (moved @ weight), signs * (inputs.detach() @ weight) - 0.3 * weight.abs().sum())
    twice = sign_step(moved, gradient, inputs.detach(), eps=0.4, step_size=0.3)
    torch.testing.assert_close((twice - inputs.detach()).abs(), torch.full_like(moved, 0.4))


def test_ranges_are_of_columns_of_channels_or_of_all():
    assert range_of(torch.arange(6.0).view(2, 3)).flatten(1).tolist() == [[0, 1, 2], [3, 4, 5]]
    images = torch.arange(24.0).view(2, 3, 2, 2)
    assert range_of(images)[:, 0, :, 0, 0].tolist() == [[0, 4, 8], [15, 19, 23]]
    assert range_of(torch.arange(24.0).view(2, 3, 4)).flatten().tolist() == [0, 23]


def test_starts_are_uniform_in_the_box():
    inputs = torch.ones(1000, 4)
    moved = random_start(inputs, 0.2, generator=torch.Generator().manual_seed(0)) - 1
    assert moved.abs().max() <= 0.2 + 1e-6
    assert abs(moved.var().item() - 0.4**2 / 12) < 5e-4


class Looks(SomebodysModule):
    """Remembers the inputs of every pass and what it counted."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.passes, self.counted = [], 0
        self.network.norm = nn.BatchNorm1d(12, momentum=1.0)

    def training_step(self, batch, batch_idx):
        self.passes += [batch[0].detach().clone()]
        self.counted += 1
        return super().training_step(batch, batch_idx)


class Passes(Callback):
    """What the network is given, which hooks see in every pass."""

    def on_fit_start(self, trainer, pl_module):
        self.inputs = []
        self.handle = pl_module.network.register_forward_pre_hook(self.see)

    def see(self, network, args):
        if network.training:
            self.inputs.append(args[0].detach().clone())

    def on_fit_end(self, trainer, pl_module):
        self.handle.remove()


def fit(module, *callbacks, **settings):
    settings = {"limit_train_batches": 1, "limit_val_batches": 0, "log_every_n_steps": 1, "max_epochs": 1, **settings}
    trainer = quiet_trainer(*callbacks, **settings)
    trainer.fit(module, loader(), loader())
    return trainer.callback_metrics


def test_only_the_clean_pass_counts():
    module, passes = Looks(), Passes()
    metrics = fit(module, AdversarialTraining(eps=0.2, steps=3, random_start=True), passes)
    inputs = next(iter(loader()))[0]
    assert len(passes.inputs) == 5
    assert module.counted == len(module.passes) == 1
    assert module.passes[0].equal(inputs)
    clean = Looks()
    fit(clean)
    assert module.network.norm.running_mean.equal(clean.network.norm.running_mean)
    plain = Looks()
    with torch.no_grad():
        loss = F.cross_entropy(plain.network(inputs), next(iter(loader()))[1])
    torch.testing.assert_close(metrics["train_loss"], loss)
    assert metrics["adversarial/loss_rise"] > 0
    assert all(((given - inputs).abs() <= 0.2 + 1e-6).all() for given in passes.inputs)
    assert all((given <= inputs.amax(0)).all() and (given >= inputs.amin(0)).all() for given in passes.inputs)


class Taught(LightningModule):
    """Changes a teacher, a mean of features and its targets in place, and takes gradients through all of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("center", torch.zeros(3))
        self.double()

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        with torch.no_grad():
            for one, other in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                one.mul_(0.5).add_(other, alpha=0.4)
            self.center.mul_(0.5).add_(self.student(inputs).mean(0))
        targets.mul_(0.5).add_(self.center)
        return ((self.student(inputs) - self.teacher(inputs)) * self.center * targets).square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.student.parameters(), lr=0.1)


def taught():
    draw = torch.Generator().manual_seed(1)
    return [(torch.rand(4, 4, generator=draw).double(), torch.rand(4, 3, generator=draw).double()) for _ in range(3)]


def taught_by_hand(steps, share):
    """Returns what is trained where every pass has a module of its own."""
    module = Taught()
    for inputs, targets in taught():
        before, moved, gradients = copy.deepcopy(module), inputs, []
        for step in range(steps + 1):
            worker = copy.deepcopy(before) if step else module
            moved = moved.clone().requires_grad_()
            loss = worker.training_step((moved, targets.clone()), 0)
            *of_weights, of_inputs = torch.autograd.grad(loss, [*worker.student.parameters(), moved])
            gradients.append(of_weights)
            moved = (moved + 0.06 * of_inputs.sign()).detach().clamp(inputs - 0.1, inputs + 0.1)
        with torch.no_grad():
            for weight, clean, attacked in zip(module.student.parameters(), gradients[0], gradients[-1], strict=True):
                weight.sub_(share * clean + (1 - share) * attacked, alpha=0.1)
    return module.state_dict()


@pytest.mark.parametrize("share", [0.5, 0.0])
@pytest.mark.parametrize("steps", [1, 2])
def test_each_pass_is_differentiated_by_what_it_has_made_of_a_teacher_a_mean_and_its_targets(steps, share):
    module = Taught()
    attack = AdversarialTraining(eps=0.1, steps=steps, step_size=0.06, clean_weight=share, clip=None)
    data = DataLoader(taught(), batch_size=None)
    quiet_trainer(attack, precision="64-true").fit(module, data)
    torch.testing.assert_close(module.state_dict(), taught_by_hand(steps, share), rtol=1e-12, atol=1e-12)


class Shifted(Taught):
    """Moves a center in place, which no graph saves, and may use a transform of torch's."""

    def training_step(self, batch, batch_idx):
        inputs, _ = batch
        with torch.no_grad():
            self.center.mul_(0.5).add_(self.student(inputs).mean(0))
        self.transform(inputs.detach())
        return (self.student(inputs) - self.center).square().sum()


def test_transforms_of_torch_in_a_step_make_no_difference_to_its_passes():
    weights = []
    for transform in (torch.sum, torch.func.grad(torch.sum)):
        module = Shifted()
        module.transform = transform
        attack = AdversarialTraining(eps=0.1)
        quiet_trainer(attack, precision="64-true").fit(module, DataLoader(taught(), batch_size=None))
        weights.append(module.state_dict())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_numbers_bound_the_inputs_and_nothing_does():
    inputs = next(iter(loader()))[0]
    for clip, bound in (((-0.5, 0.5), 0.5), (None, inputs.abs().max() + 0.05)):
        passes = Passes()
        fit(Looks(), AdversarialTraining(eps=0.1, clip=clip, clean_weight=0.0), passes)
        assert passes.inputs[0].equal(inputs)
        assert passes.inputs[1].abs().max() <= bound
        assert clip or (passes.inputs[1] - inputs).abs().min() > 0.099


@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("other", [lambda: BatchMixing(Mixup(alpha=0.7), seed=3), lambda: RDrop(weight=1.0)])
def test_each_pass_is_a_whole_step_whatever_the_order(first, other):
    def drops(network):
        network.act = nn.Dropout(0.3)

    both = [AdversarialTraining(eps=1e-6), other()]
    weights = []
    for callbacks in (both if first else both[::-1], both[1:]):
        module = SomebodysModule(prepare=drops)
        torch.manual_seed(3)
        fit(module, *callbacks)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)  # a box of no width: the same masks and partners


def test_a_schedule_begins_with_the_clean_batch():
    passes = Passes()
    schedule = StrengthSchedule(kind="linear", duration=2)
    metrics = fit(Looks(), AdversarialTraining(eps=0.5, schedule=schedule), passes, max_epochs=2)
    assert metrics["schedule/adversarial"] == 0.5
    width = (passes.inputs[-1] - passes.inputs[0]).abs().max().item()
    assert 0.2 < width <= 0.25 + 1e-6


def of_one(inputs):
    return DataLoader([(inputs, torch.zeros(8, dtype=torch.int64))], batch_size=None)


class OfWholeNumbers(SomebodysModule):
    """Reads whole numbers."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0].float(), batch[1]), batch_idx)


class OfNoInput(SomebodysModule):
    """Has a loss that its inputs don't take part in."""

    def training_step(self, batch, batch_idx):
        return self.network.head.weight.square().sum()


class ByHand(SomebodysModule):
    """Optimizes by hand."""

    automatic_optimization = False


@pytest.mark.parametrize(
    ("module", "inputs", "message"),
    [
        (OfWholeNumbers(), torch.ones(8, 6, dtype=torch.int64), "floating dtype .* finds torch.int64 of shape"),
        (OfNoInput(), torch.ones(8, 6), "inputs must be what the loss is computed of"),
        (ByHand(), torch.ones(8, 6), "automatic_optimization must be True with AdversarialTraining"),
    ],
)
def test_what_can_not_be_attacked_is_refused(module, inputs, message):
    trainer = quiet_trainer(AdversarialTraining(eps=0.1), limit_val_batches=0)
    with pytest.raises(SettingError, match=message):
        trainer.fit(module, of_one(inputs), of_one(inputs))


def test_a_second_attack_is_refused_before_the_first_batch():
    module = Looks()
    with pytest.raises(SettingError, match="callbacks must hold one AdversarialTraining with eps above 0, but hold 2"):
        fit(module, AdversarialTraining(eps=0.1), AdversarialTraining(eps=0.2))
    assert module.counted == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": -0.1}, r"eps must be in \[0, ∞\), but is -0.1"),
        ({"eps": 0.1, "steps": 0}, "steps must be"),
        ({"eps": 0.1, "clean_weight": 1.1}, r"clean_weight must be in \[0, 1\], but is 1.1"),
        ({"eps": 0.1, "clip": "unit"}, "clip must be 'seen', two numbers or None, but is 'unit'"),
        ({"eps": 0.1, "clip": (1.0, 0.0)}, "clip's second number"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(SettingError, match=message):
        AdversarialTraining(**settings)
