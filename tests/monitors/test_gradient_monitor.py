"""What is shown is what a loop by hand sees, whoever clips."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import nn

from lightning_reg.callbacks import GradientClipping, GradientMonitor, L2Penalty, SharpnessAwareMinimization
from lightning_reg.core.gradients import gradient_norms
from lightning_reg.settings import SettingError
from tests.conformance.problem import LEARNING_RATE, Setting, SomebodysModule, loader, network, samples, trainable
from tests.helpers import quiet_trainer


class Recorder(Callback):
    """What was logged in each batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        kinds = ("grad", "update")
        self.seen.append(
            {tag: value.item() for tag, value in trainer.callback_metrics.items() if tag.startswith(kinds)}
        )


def watched(setting, *callbacks, module=None, **settings):
    recorder = Recorder()
    trainer = setting.trainer([*callbacks, recorder], **{"max_epochs": 1, "log_every_n_steps": 1, **settings})
    trainer.fit(module or setting.module(), loader(), loader())
    return recorder.seen


def nothing(_):
    pass


def by_hand(clip=nothing, accumulate=1, epochs=1):
    """Norms before and after clipping, and the ratio of update to weights, of every step."""
    model = network()
    optimizer = torch.optim.SGD(trainable(model), lr=LEARNING_RATE, momentum=0.9)
    steps = []
    for index, (inputs, labels) in enumerate([*loader()] * epochs):
        (F.cross_entropy(model(inputs), labels) / accumulate).backward()
        if (index + 1) % accumulate and index % 6 < 5:
            continue
        before, start = norm(model), [parameter.detach().clone() for parameter in with_gradient(model)]
        clip(model)
        after = norm(model)
        optimizer.step()
        moved = [parameter.detach() - old for parameter, old in zip(with_gradient(model), start, strict=True)]
        steps.append((before, after, (flat(moved).norm() / flat(start).norm()).item()))
        optimizer.zero_grad()
    return steps


def with_gradient(model):
    return [parameter for parameter in model.parameters() if parameter.grad is not None]


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def norm(model):
    return flat([parameter.grad for parameter in with_gradient(model)]).norm().item()


def by_norm(model):
    nn.utils.clip_grad_norm_(model.parameters(), 0.55)


def by_value(model):
    nn.utils.clip_grad_value_(model.parameters(), 0.1)


class Manual(SomebodysModule):
    """Clips by hand."""

    def __init__(self, how):
        super().__init__()
        self.automatic_optimization = False
        self.how = how

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.network(batch[0]), batch[1]))
        if self.how == "lightning, by norm":
            self.clip_gradients(optimizer, gradient_clip_val=0.55)
        if self.how == "lightning, by value":
            self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="value")
        if self.how == "torch, by norm":
            nn.utils.clip_grad_norm_(self.parameters(), 0.55)
        optimizer.step()


class OwnStep(SomebodysModule):
    """Has an optimizer step of its own, and may clip in it."""

    def __init__(self, how="not at all"):
        super().__init__()
        self.how = how

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if self.how == "after the closure":
            optimizer_closure()
            nn.utils.clip_grad_norm_(self.parameters(), 0.55)
            optimizer.step()
            return

        def closure():
            loss = optimizer_closure()
            if self.how == "in the closure":
                nn.utils.clip_grad_norm_(self.parameters(), 0.55)
            if self.how == "lightning, by value":
                self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="value")
            return loss

        optimizer.step(closure=closure)


WAYS = {
    "nobody": (lambda: {}, None, None),
    "trainer, by norm": (lambda: {"gradient_clip_val": 0.55}, by_norm, 0.55),
    "trainer, by value": (lambda: {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}, by_value, 0.1),
    "callback, by norm": (lambda: {"callback": GradientClipping(max_norm=0.55)}, by_norm, 0.55),
    "callback, by value": (lambda: {"callback": GradientClipping(algorithm="value", max_value=0.1)}, by_value, 0.1),
    "lightning, by norm": (lambda: {"module": Manual("lightning, by norm")}, by_norm, 0.55),
    "lightning, by value": (lambda: {"module": Manual("lightning, by value")}, by_value, 0.1),
    "torch, by norm": (lambda: {"module": Manual("torch, by norm")}, by_norm, None),
    "after the closure": (lambda: {"module": OwnStep("after the closure")}, by_norm, None),
    "in the closure": (lambda: {"module": OwnStep("in the closure")}, by_norm, None),
    "in the closure, by value": (lambda: {"module": OwnStep("lightning, by value")}, by_value, 0.1),
    "own step, nobody": (lambda: {"module": OwnStep()}, None, None),
    "own step, trainer": (lambda: {"module": OwnStep(), "gradient_clip_val": 0.55}, by_norm, 0.55),
    "own step, callback": (
        lambda: {"module": OwnStep(), "callback": GradientClipping(max_norm=0.55)},
        by_norm,
        0.55,
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_norms_threshold_and_clip_fraction_are_right_whoever_clips(way):
    make, clip, threshold = WAYS[way]
    settings = make()
    callbacks = [settings.pop("callback")] if "callback" in settings else []
    seen = watched(Setting(), *callbacks, GradientMonitor(update_ratio=True), **settings)
    expected = by_hand(clip or nothing)
    assert len(seen) == len(expected)
    for index, (shown, (before, after, ratio)) in enumerate(zip(seen, expected, strict=True)):
        assert shown["grad/norm"] == pytest.approx(before, rel=1e-5)
        assert shown["grad/norm_clipped"] == pytest.approx(after, rel=1e-5)
        assert shown["update/ratio"] == pytest.approx(ratio, rel=1e-4)
        so_far = expected[: index + 1]
        fraction = sum(after < before * 0.9999 for before, after, _ in so_far) / len(so_far)
        assert shown["grad/clip_fraction"] == pytest.approx(fraction)
        assert shown.get("grad/clip_threshold") == (threshold and pytest.approx(threshold))
    if clip is by_norm:  # else the fraction would be right by accident
        assert 0 < seen[-1]["grad/clip_fraction"] < 1


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_a_gradient_scalers_scale_is_never_shown(fused, clip):
    clipping = [GradientClipping(max_norm=0.55)] if clip else []
    seen = watched(Setting("16-mixed", fused=fused), GradientMonitor(), *clipping)
    for shown, (before, after, _) in zip(seen, by_hand(by_norm if clip else nothing), strict=True):
        # The way of 6 steps in float16.
        assert shown["grad/norm"] == pytest.approx(before, rel=2e-3)
        assert shown["grad/norm_clipped"] == pytest.approx(after, rel=2e-3)


def test_once_per_optimizer_step_under_accumulation(monkeypatch):
    steps = []

    def counted(parameters):
        steps.append(1)
        return gradient_norms(parameters)

    monkeypatch.setattr("lightning_reg.core.step.gradient_norms", counted)
    seen = watched(Setting(accumulate=4), GradientMonitor(every_n_steps=1))
    assert len(steps) == 2
    expected = by_hand(accumulate=4)
    assert "grad/norm" not in seen[2]
    assert seen[3]["grad/norm"] == pytest.approx(expected[0][0], rel=1e-5)
    assert seen[5]["grad/norm"] == pytest.approx(expected[1][0], rel=1e-5)


def test_every_n_steps():
    """Measured every second step; shown when the trainer logs, here every third."""
    seen = watched(Setting(), GradientMonitor(every_n_steps=2), log_every_n_steps=3)
    values = [shown.get("grad/norm") for shown in seen]
    expected = [before for before, _, _ in by_hand()]
    assert values == [None, None] + [pytest.approx(expected[index], rel=1e-5) for index in (1, 1, 1, 5)]


def test_clip_fraction_is_that_of_all_steps_of_the_epoch_with_our_clipping():
    """Also of those that weren't measured."""
    seen = watched(Setting(), GradientMonitor(every_n_steps=6), GradientClipping(max_norm=0.55), max_epochs=2)
    clipped = [after < before for before, after, _ in by_hand(by_norm, epochs=2)]
    assert sum(clipped[:6]) != sum(clipped[6:])
    assert seen[5]["grad/clip_fraction"] == pytest.approx(sum(clipped[:6]) / 6)
    assert seen[11]["grad/clip_fraction"] == pytest.approx(sum(clipped[6:]) / 6)


def test_layers_within_a_budget():
    model = network()
    F.cross_entropy(model(samples()[:8][0]), samples()[:8][1]).backward()
    seen = watched(Setting(), GradientMonitor(layers=("*",), max_layers=2, update_ratio=True), limit_train_batches=1)
    shown = {tag: value for tag, value in seen[0].items() if tag.startswith("grad/norm/")}
    # The largest: hidden and tied share a matrix, which counts as the first one's; then the first and the frozen one.
    assert set(shown) == {"grad/norm/network.first", "grad/norm/network.hidden"}
    first = flat([model.first.weight.grad, model.first.bias.grad]).norm()
    assert shown["grad/norm/network.first"] == pytest.approx(first.item(), rel=1e-5)
    length = flat([model.first.weight.detach(), model.first.bias.detach()]).norm()
    ratio = seen[0]["update/ratio/network.first"]
    assert ratio == pytest.approx((LEARNING_RATE * first / length).item(), rel=1e-4)


def test_penalties_are_in_what_is_shown_but_not_in_the_loss():
    seen = watched(Setting(), GradientMonitor(), L2Penalty(weight=0.5), limit_train_batches=1)
    model = network()
    loss = F.cross_entropy(model(samples()[:8][0]), samples()[:8][1])
    (loss + 0.25 * sum((parameter**2).sum() for parameter in trainable(model) if parameter.ndim > 1)).backward()
    assert seen[0]["grad/norm"] == pytest.approx(norm(model), rel=1e-5)


class Explodes(SomebodysModule):
    """The gradient of its head isn't finite in the third batch."""

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        return loss + torch.inf * self.network.head.weight.sum().square() if batch_idx == 2 else loss


# A fused optimizer skips by itself; nobody knows without a look.
@pytest.mark.parametrize(("fused", "every"), [(False, 1), (False, 4), (True, 1)])
@pytest.mark.parametrize("clip", [False, True])
def test_a_step_that_is_not_finite_is_counted_and_named_rather_than_shown(fused, clip, every):
    setting = Setting("16-mixed", fused=fused)
    clipping = [GradientClipping(max_norm=0.55)] if clip else []
    monitor = GradientMonitor(every_n_steps=every)
    with pytest.warns(UserWarning, match=r"The gradient isn't finite in network\.head\.weight$"):
        seen = watched(setting, monitor, *clipping, module=Explodes(fused=fused), limit_train_batches=5)
    assert seen[-1]["grad/nonfinite_steps"] == 1
    if every == 1:
        assert seen[2]["grad/norm"] == seen[1]["grad/norm"]  # nothing new
        assert seen[3]["grad/norm"] != seen[2]["grad/norm"]
    assert all(value == value and abs(value) != torch.inf for shown in seen for value in shown.values())  # noqa: PLR0124


def test_several_optimizers_are_shown_apart():
    class Two(SomebodysModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            groups = (self.network.first.parameters(), self.network.head.parameters())
            return [torch.optim.SGD(group, lr=0.1) for group in groups]

        def training_step(self, batch, batch_idx):
            self.manual_backward(F.cross_entropy(self.network(batch[0]), batch[1]))
            for optimizer in self.optimizers():
                optimizer.step()
            self.zero_grad()

    seen = watched(Setting(), GradientMonitor(), module=Two(), limit_train_batches=1)
    model = network()
    F.cross_entropy(model(samples()[:8][0]), samples()[:8][1]).backward()
    for index, layer in enumerate((model.first, model.head)):
        expected = flat([layer.weight.grad, layer.bias.grad]).norm().item()
        assert seen[0][f"grad/norm_optimizer_{index + 1}"] == pytest.approx(expected, rel=1e-5)


def test_optimizers_whose_parameters_are_frozen_in_turn_are_measured():
    class Turns(SomebodysModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            groups = (self.network.first.parameters(), self.network.head.parameters())
            return [torch.optim.SGD(group, lr=0.1) for group in groups]

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                self.toggle_optimizer(optimizer)
                self.manual_backward(F.cross_entropy(self.network(batch[0]), batch[1]))
                optimizer.step()
                optimizer.zero_grad()
                self.untoggle_optimizer(optimizer)

    # The first batch isn't measured, so that the second optimizer is met while its parameters are frozen.
    seen = watched(Setting(), GradientMonitor(), module=Turns(), limit_train_batches=2, log_every_n_steps=2)
    model, expected = network(), []
    for inputs, labels in [*loader()][:2]:
        for layer in (model.first, model.head):
            weights = [*layer.parameters()]
            gradients = torch.autograd.grad(F.cross_entropy(model(inputs), labels), weights)
            expected.append(flat(gradients).norm().item())
            with torch.no_grad():
                torch._foreach_add_(weights, gradients, alpha=-0.1)
    for index in range(2):
        assert seen[1][f"grad/norm_optimizer_{index + 1}"] == pytest.approx(expected[2 + index], rel=1e-5)


def test_two_monitors_and_the_trainers_own_method_are_told_apart():
    trainer = Setting(clip="norm").trainer(
        [GradientMonitor(), GradientMonitor(every_n_steps=2)], max_epochs=1, log_every_n_steps=1
    )
    trainer.fit(SomebodysModule(), loader(), loader())
    assert "clip_gradients" not in vars(trainer.precision_plugin)
    assert "grad/norm_2" in trainer.callback_metrics


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_a_batch_without_a_loss_is_no_step():
    class Skips(SomebodysModule):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    for setting in (Setting(), Setting("16-mixed")):
        seen = watched(setting, GradientMonitor(), module=Skips())
        assert seen[-1]["grad/nonfinite_steps"] == 0


class Twice(torch.optim.SGD):
    """Climbs with the first gradient of a step, and descends from where it was with the second, as SAM does."""

    def step(self, closure):
        with torch.enable_grad():
            closure()
        weights = [weight for weight in self.param_groups[0]["params"] if weight.grad is not None]
        start = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            torch._foreach_add_(weights, [weight.grad for weight in weights], alpha=0.05)
        with torch.enable_grad():
            loss = closure()
        with torch.no_grad():
            torch._foreach_copy_(weights, start)
        super().step()
        return loss


def climbed():
    """Norm of the gradient, and of the update relative to the weights, of every step."""
    model = network()
    steps = []
    for inputs, labels in loader():
        F.cross_entropy(model(inputs), labels).backward()
        weights = with_gradient(model)
        start = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            torch._foreach_add_(weights, [weight.grad for weight in weights], alpha=0.05)
        model.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        slope = norm(model)
        steps.append((slope, 0.1 * slope / flat(start).norm().item()))
        with torch.no_grad():
            torch._foreach_add_(start, [weight.grad for weight in weights], alpha=-0.1)
            torch._foreach_copy_(weights, start)
        model.zero_grad()
    return steps


@pytest.mark.parametrize("every", [None, 2])
def test_a_closure_that_is_called_twice_makes_one_step_of_which_the_last_gradient_counts(every):
    class Climbs(SomebodysModule):
        def configure_optimizers(self):
            return Twice(trainable(self.network), lr=0.1)

    monitor = GradientMonitor(every_n_steps=every, update_ratio=True)
    seen = watched(Setting(), monitor, module=Climbs())
    expected = climbed()
    assert len(seen) == len(expected)
    for shown, (slope, ratio) in [*zip(seen, expected, strict=True)][1 :: every or 1]:
        assert shown["grad/norm"] == shown["grad/norm_clipped"] == pytest.approx(slope, rel=1e-5)
        assert shown["update/ratio"] == pytest.approx(ratio, rel=1e-4)
        assert shown["grad/nonfinite_steps"] == 0
        assert shown["grad/clip_fraction"] == 0


def test_sams_second_pass_is_not_taken_for_a_clipping():
    """The module has an optimizer step of its own, in which it doesn't clip."""
    seen, usual = (
        watched(Setting(), GradientMonitor(), SharpnessAwareMinimization(rho=0.5), module=module)
        for module in (OwnStep(), SomebodysModule())
    )
    assert seen == usual


def test_lbfgs_is_refused_as_what_is_measured_has_no_single_gradient():
    class Searches(SomebodysModule):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(SettingError, match="LBFGS with GradientMonitor: its steps evaluate several gradients") as error:
        quiet_trainer(GradientMonitor()).fit(Searches(), loader(), loader())
    assert "penalty" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be a whole number of at least 1"),
        ({"max_layers": 0}, "max_layers must be a whole number of at least 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        GradientMonitor(**settings)


def test_layers_that_match_nothing_are_refused_with_near_matches():
    with pytest.raises(
        SettingError, match=r"layers pattern 'network\.frst' matches no layer; there are network\.first"
    ):
        quiet_trainer(GradientMonitor(layers=("network.frst",))).fit(SomebodysModule(), loader(), loader())
