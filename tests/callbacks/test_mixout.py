"""Weights that are swapped for those that fine-tuning started from."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_reg.callbacks import InsertDropConnect, Mixout
from lightning_reg.functional.forward.dropout import mixout
from lightning_reg.functional.forward.noise import NoiseStream
from lightning_reg.nn import drop_connected, mixed_out, monte_carlo_predict
from lightning_reg.nn.layers.drop_connect import plain_again
from lightning_reg.settings import SettingError
from tests.callbacks.somebodys import Somebodys, fit, loader, sequential
from tests.conformance.draws import kept
from tests.conformance.problem import Textbook, network
from tests.conformance.technique import Technique
from tests.helpers import quiet_trainer


def swapped_weights(model):
    """The paper's formula, with what is kept where it has what is swapped."""
    layer = model.hidden
    start = network().hidden.weight.detach()

    def forward(inputs):
        weight = layer.weight
        if model.training:
            swapped = 1 - kept("Mixout", model, weight, weight.shape, 0.4)
            weight = (swapped * start + (1 - swapped) * weight - 0.4 * start) / 0.6
        return F.linear(inputs, weight, layer.bias)

    layer.forward = forward


CONFORMANCE = {
    "Mixout": Technique(
        lambda: Mixout(p=0.4, include=("network.hidden",), seed=3),
        lambda: Mixout(p=0.0, include=("network.first",)),
        Textbook(change=swapped_weights),
    ),
}


class Fixed:
    """In the place of random numbers: what is kept."""

    def __init__(self, keep):
        self.keep = keep

    def serves(self, inputs):
        return True

    def draw(self, kind, like, shape, p=0.0):
        return self.keep.to(like.dtype)


def test_it_is_the_papers_formula_and_so_is_its_gradient():
    torch.manual_seed(0)
    weight, start = torch.randn(2, 30, 20, dtype=torch.float64).unbind()
    weight.requires_grad_()
    keep = torch.rand(30, 20) < 0.7
    found = mixout(weight, start, 0.3, Fixed(keep))
    swapped = (~keep).double()
    expected = (swapped * start + (1 - swapped) * weight - 0.3 * start) / 0.7
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    (gradient,) = torch.autograd.grad(found.sum(), weight)
    torch.testing.assert_close(gradient, keep.double() / 0.7)


def test_expectation_is_the_weights_and_the_rate_is_p():
    torch.manual_seed(0)
    found = mixout(torch.full((100_000,), 3.0), torch.ones(100_000), 0.3)
    assert abs((found == 1).double().mean().item() - 0.3) <= 4 * (0.3 * 0.7 / 100_000) ** 0.5
    assert abs(found.double().mean().item() - 3) <= 4 * (2**2 * 0.3 / 0.7 / 100_000) ** 0.5
    assert torch.equal(mixout(torch.randn(5), torch.ones(5), 1.0), torch.ones(5))


@pytest.mark.parametrize(
    "make",
    [lambda: nn.Linear(40, 30), lambda: nn.Conv1d(4, 8, 3), lambda: nn.Conv2d(4, 8, 3), lambda: nn.Conv3d(2, 3, 2)],
)
def test_from_weights_of_zeros_it_is_drop_connect_to_the_bit(make):
    layers = [make(), make()]
    layers[1].load_state_dict(layers[0].state_dict())
    shape = (
        (3, 40) if isinstance(layers[0], nn.Linear) else (3, layers[0].in_channels, *[5] * (layers[0].weight.ndim - 2))
    )
    inputs, outputs = torch.randn(shape), []
    drop_connected(layers[0], 0.4)
    mixed_out(layers[1], 0.4).start.zero_()
    for layer in layers:
        layer.stream = NoiseStream()
        layer.stream.start(5)
        outputs.append(layer(inputs))
    assert torch.equal(*outputs)


def test_a_layer_is_what_it_was_in_evaluation_and_when_it_is_plain_again():
    layer = nn.Linear(6, 4)
    names, inputs = list(layer.state_dict()), torch.randn(3, 6)
    mixed_out(layer, 0.5)
    assert torch.equal(layer(inputs), F.linear(inputs, layer.weight, layer.bias))  # nothing is trained yet
    with torch.no_grad():
        layer.weight.add_(1.0)
    assert not torch.equal(layer(inputs), F.linear(inputs, layer.weight, layer.bias))
    assert torch.equal(layer.eval()(inputs), F.linear(inputs, layer.weight, layer.bias))
    assert list(layer.state_dict()) == names
    plain_again(layer)
    assert type(layer) is nn.Linear
    assert not {"p", "start", "swaps", "stream"} & set(vars(layer))


def test_the_starting_point_lasts_through_evaluations_and_checkpoints(tmp_path):
    callback = Mixout(p=0.5, include=("net.5",))
    module = Somebodys(sequential)
    start = module.net[5].weight.detach().clone()
    trainer = quiet_trainer(callback, max_epochs=1)
    trainer.fit(module, loader())
    trainer.test(module, loader())
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    states = torch.load(tmp_path / "after.ckpt", weights_only=True)["callbacks"]
    assert torch.equal(states[callback.state_key]["starts"]["net.5"], start)
    used = []

    class Look(Somebodys):
        def training_step(self, batch, batch_idx):
            used.append(self.net[5].start.clone())
            return super().training_step(batch, batch_idx)

    again = quiet_trainer(Mixout(p=0.5, include=("net.5",)), max_epochs=2)
    again.fit(Look(sequential), loader(), ckpt_path=tmp_path / "after.ckpt")
    assert used
    assert all(torch.equal(given, start) for given in used)


def test_predictions_that_drop_swap_where_there_is_a_starting_point():
    class Uncertain(Somebodys):
        def predict_step(self, batch, batch_idx):
            return monte_carlo_predict(self.net, batch[0], num_samples=4, outputs="values").std

    module, callback = Uncertain(sequential), Mixout(p=0.5, include=("net.5",))
    trainer = quiet_trainer(callback, max_epochs=1)
    assert not trainer.predict(module, loader())[0].any()  # nothing is known
    trainer.fit(module, loader())
    assert trainer.predict(module, loader())[0].max() > 0


def test_a_checkpoint_of_other_layers_is_refused_and_one_without_is_said(tmp_path):
    _, trainer = fit(sequential, InsertDropConnect(include=("net.5",)))
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    with pytest.warns(UserWarning, match="holds no starting point of a Mixout with p 0.7 and include"):
        quiet_trainer(Mixout(), max_epochs=2).fit(Somebodys(sequential), loader(), ckpt_path=tmp_path / "other.ckpt")
    _, trainer = fit(sequential, Mixout(include=("net.*",)))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    state = torch.load(tmp_path / "own.ckpt", weights_only=True)
    (key,) = [key for key in state["callbacks"] if key.startswith("Mixout")]
    del state["callbacks"][key]["starts"]["net.3.0"]
    torch.save(state, tmp_path / "own.ckpt")
    with pytest.raises(SettingError, match=r"ckpt_path must hold the starting point of net\.3\.0, for which Mixout"):
        quiet_trainer(Mixout(include=("net.*",)), max_epochs=2).fit(
            Somebodys(sequential), loader(), ckpt_path=tmp_path / "own.ckpt"
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 1.2}, r"p must be in \[0, 1\], but is 1.2"),
        ({"types": ("ReLU",)}, "include must choose modules of type Linear, Conv1d, Conv2d, Conv3d, but chooses ReLU"),
        ({"include": ("net.9",)}, "matches no module"),
    ],
)
def test_what_has_no_weights_is_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        fit(sequential, Mixout(**settings))
