import copy

import pytest
import torch
from torch import nn

from lightning_reg.callbacks import GradientClipping, StrengthSchedule
from lightning_reg.settings import SettingError
from tests.conformance.problem import (
    Setting,
    SomebodysModule,
    Textbook,
    loader,
    network,
    textbook_loop,
    trainable,
    weights_of,
)
from tests.helpers import quiet_trainer


def fitted(*callbacks, module=None, **settings):
    module = module or SomebodysModule()
    Setting().trainer(callbacks, **settings).fit(module, loader(), loader())
    return weights_of(module)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "nrom"}, "algorithm must be one of norm, .* did you mean 'norm'"),
        ({"max_norm": 0.0}, r"max_norm must be in \(0, ∞\], but is 0.0"),
        ({"max_norm": float("nan")}, r"max_norm must be in \(0, ∞\]"),
        ({"norm_type": 0.5}, r"norm_type must be in \[1, ∞\)"),
        ({"algorithm": "value", "max_value": -1.0}, r"max_value must be in \(0, ∞\]"),
        ({"algorithm": "adaptive", "clip_factor": 0.0}, r"clip_factor must be in \(0, ∞\]"),
        ({"algorithm": "adaptive", "eps": 0.0}, r"eps must be in \(0, ∞\)"),
        ({"algorithm": "percentile", "percentile": 101.0}, r"percentile must be in \(0, 100.*\], but is 101.0"),
        ({"algorithm": "percentile", "percentile": 0.0}, r"percentile must be in \(0, 100"),
        ({"algorithm": "percentile", "history": 0}, "history must be a whole number of at least 1"),
        ({"algorithm": "percentile", "history": 10**12}, "history must be .* at most 1,000,000, but is 1000000000000"),
        ({"algorithm": "zscore", "alpha": 1.0}, r"alpha must be in \(0, 1\), but is 1.0"),
        ({"algorithm": "zscore", "z_threshold": -1.0}, r"z_threshold must be in \(0, ∞\]"),
        ({"algorithm": "zscore", "warmup_steps": 1}, "warmup_steps must be a whole number of at least 2"),
        ({"max_value": 1.0}, "max_value must be left out with algorithm 'norm', which takes max_norm, norm_type"),
        ({"schedule": StrengthSchedule()}, r"schedule.start must be in \(0, ∞\)"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        GradientClipping(**settings)


class ClipsItself(SomebodysModule):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")


class Repairs(SomebodysModule):
    """Replaces what isn't finite."""

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        for parameter in trainable(self):
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0)


@pytest.mark.parametrize(
    ("callbacks", "module", "settings", "message"),
    [
        ([GradientClipping()], SomebodysModule, {"gradient_clip_val": 0.5}, "gradient_clip_val must be left out"),
        ([GradientClipping()], ClipsItself, {}, "ClipsItself, whose configure_gradient_clipping changes gradients"),
        ([GradientClipping()], Repairs, {}, "Repairs, whose configure_gradient_clipping changes gradients itself"),
        (
            [GradientClipping(), GradientClipping(algorithm="value")],
            SomebodysModule,
            {},
            r"include must choose different parameters in two GradientClippings, but both clip network\.",
        ),
    ],
)
def test_clipping_in_two_places_is_refused(callbacks, module, settings, message):
    with pytest.raises(SettingError, match=message):
        quiet_trainer(*callbacks, **settings).fit(module(), loader(), loader())


def test_a_trainers_clipping_by_zero_is_none():
    with_zero, without = (fitted(GradientClipping(max_norm=0.1), **extra) for extra in ({"gradient_clip_val": 0}, {}))
    assert all(torch.equal(one, other) for one, other in zip(with_zero, without, strict=True))


def test_groups_are_clipped_apart():
    def clip(model, *_):
        nn.utils.clip_grad_norm_(model.head.parameters(), 0.05)
        nn.utils.clip_grad_value_([parameter for parameter in trainable(model) if parameter.shape[0] != 3], 0.01)

    head = GradientClipping(max_norm=0.05, include=("network.head.*",))
    others = GradientClipping(algorithm="value", max_value=0.01, exclude=("network.head.*",))
    expected = textbook_loop(Setting(), Textbook(on_gradients=clip)).weights[-1]
    for one, other in zip(fitted(head, others), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm_type", [1.0, torch.inf])
def test_other_norms_equal_torchs(norm_type):
    def clip(model, *_):
        nn.utils.clip_grad_norm_(model.parameters(), 0.1, norm_type)

    expected = textbook_loop(Setting(), Textbook(on_gradients=clip)).weights[-1]
    for one, other in zip(fitted(GradientClipping(max_norm=0.1, norm_type=norm_type)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_scheduled_threshold():
    def clip(model, step, memory):
        nn.utils.clip_grad_norm_(model.parameters(), 0.1 * [1, 0.55, 0.1][step // 6])

    schedule = StrengthSchedule(start=1.0, end=0.1)
    expected = textbook_loop(Setting(), Textbook(on_gradients=clip)).weights[-1]
    for one, other in zip(fitted(GradientClipping(max_norm=0.1, schedule=schedule)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_adaptive_clipping_spares_the_head_unless_asked():
    def head(exclude_head):
        clipping = GradientClipping(algorithm="adaptive", clip_factor=1e-6, exclude_head=exclude_head)
        module = SomebodysModule()
        fitted(clipping, module=module)
        return (module.network.head.weight - network().head.weight).abs().max()

    assert head(None) > 0.1
    assert head(False) < 1e-4


class Product(nn.Module):
    """A linear layer of somebody's, of no class of torch's."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.ones(inputs, outputs))

    def forward(self, inputs):
        return inputs @ self.weight


def adaptively_clipped(network, **settings):
    module = SomebodysModule()
    module.network = network
    return fitted(GradientClipping(algorithm="adaptive", clip_factor=0.001, **settings), module=module)


@pytest.mark.parametrize(
    "scripted", [torch.jit.script, lambda model: torch.jit.trace(model, torch.zeros(2, 6))], ids=["scripted", "traced"]
)
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_adaptive_clipping_spares_the_head_of_a_scripted_network(scripted):
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    expected = adaptively_clipped(copy.deepcopy(model))
    for one, other in zip(adaptively_clipped(scripted(model)), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_adaptive_clipping_that_finds_no_head_says_so():
    with pytest.warns(UserWarning, match="leaves no head out, because there is no nn.Linear: set exclude_head=False"):
        adaptively_clipped(Product(6, 3))
    adaptively_clipped(Product(6, 3), exclude_head=False)  # warnings are errors


def test_adaptive_clipping_of_nothing_but_a_head_is_refused():
    clipping = GradientClipping(algorithm="adaptive", include=("network.head.*",))
    with pytest.raises(SettingError, match="exclude_head must be False, because nothing but the head is left"):
        fitted(clipping)


def test_sparse_gradients_are_clipped():
    class Looks(SomebodysModule):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(6, 4, sparse=True)
            nn.init.ones_(self.table.weight)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

        def training_step(self, batch, batch_idx):
            return self.table(torch.tensor([1, 1, 2])).sum()

    module = Looks()
    fitted(GradientClipping(max_norm=1.0), module=module, max_epochs=1, limit_train_batches=1)
    moved = 1 - module.table.weight.detach()
    torch.testing.assert_close(moved.norm(), torch.tensor(1.0))
    assert moved[1, 0] == pytest.approx(2 * moved[2, 0])


def test_a_history_keeps_its_norms_when_a_step_is_skipped():
    """A norm that isn't finite would stay in the percentile for the length of the history."""

    class Explodes(SomebodysModule):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * (torch.inf if batch_idx == 2 else 1)

    for algorithm in ("percentile", "zscore"):
        clipping = GradientClipping(algorithm=algorithm)
        module = Explodes()
        Setting("16-mixed").trainer([clipping], max_epochs=1).fit(module, loader(), loader())
        assert all(weight.isfinite().all() for weight in weights_of(module))
        (memory,) = clipping.state_dict().values()
        seen = memory["count"] if algorithm == "percentile" else memory["moments"][0]
        assert seen == 5
