"""Activations may be complex, as those of a network in the frequency domain."""

import math

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import (
    ActivationStats,
    ActivityPenalty,
    DecorrelationPenalty,
    InsertDropBlock,
    InsertDropout,
    InsertLayerDrop,
    InsertStochasticDepth,
)
from lightning_reg.functional.forward.drop_block import drop_block
from lightning_reg.functional.forward.noise import NoiseStream
from lightning_reg.functional.loss.output_penalties import (
    activity_penalty,
    decorrelation_penalty,
    temporal_activity_penalty,
)
from lightning_reg.nn import DropBlock, SpatialDropout, StochasticDepth, VariationalDropout
from tests.helpers import quiet_trainer


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(4, 4, 1, dtype=torch.cfloat)

    def forward(self, inputs):
        return inputs + self.layer(inputs)


class Spectral(LightningModule):
    """Somebody's network that filters a signal's frequencies."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.filters = nn.Conv1d(2, 4, 3, padding=1, dtype=torch.cfloat)
        self.residual = Residual()
        self.mixed = nn.Conv1d(4, 2, 1, dtype=torch.cfloat)

    def training_step(self, batch, batch_idx):
        frequencies = self.mixed(self.residual(self.filters(torch.fft.fft(batch[0]))))
        return (torch.fft.ifft(frequencies).real - batch[1]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def signals():
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(*torch.randn(2, 24, 2, 8, generator=generator))


def fit(*callbacks):
    module = Spectral()
    trainer = quiet_trainer(*callbacks, log_every_n_steps=1)
    trainer.fit(module, DataLoader(signals(), batch_size=8))
    return module, trainer


def activations(*shape, dtype=torch.cdouble):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()


def squares(values):
    return values.real.square() + values.imag.square()


def pairs_that_covary(values):
    """By torch's own covariance matrix, which is Hermitian."""
    covariances = torch.cov((values.movedim(1, -1) if values.ndim > 3 else values).flatten(0, -2).T, correction=0)
    return squares(covariances - covariances.diag().diag()).sum() / 2


PENALTIES = {
    "l1": (lambda z: activity_penalty(z, l1=0.3), lambda z: 0.3 * squares(z).sqrt().mean()),
    "l2": (lambda z: activity_penalty(z, l2=0.2), lambda z: 0.2 * squares(z).mean()),
    "both": (
        lambda z: activity_penalty(z, l1=0.3, l2=0.2),
        lambda z: 0.3 * squares(z).sqrt().mean() + 0.2 * squares(z).mean(),
    ),
    "temporal": (lambda z: temporal_activity_penalty(z, 0.7), lambda z: 0.7 * squares(z[:, 1:] - z[:, :-1]).mean()),
    "decorrelation": (lambda z: decorrelation_penalty(z, 0.5), lambda z: 0.5 * pairs_that_covary(z)),
}


@pytest.mark.parametrize("shape", [(6, 3), (2, 7), (4, 5, 3), (3, 4, 2, 2)])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_and_their_gradients_are_those_of_absolute_values(penalty, shape):
    ours, theirs = PENALTIES[penalty]
    one, other = activations(*shape), activations(*shape)
    value, expected = ours(one), theirs(other)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        torch.autograd.grad(value, one), torch.autograd.grad(expected, other), rtol=1e-10, atol=1e-14
    )


def test_penalties_are_the_same_in_compiled_code():
    for ours, _ in PENALTIES.values():
        values = activations(4, 5, 3)
        compiled = torch.compile(ours, backend="eager")
        torch.testing.assert_close(compiled(values), ours(values), rtol=1e-12, atol=1e-14)


def test_penalties_of_nothing_are_zero():
    for ours, _ in PENALTIES.values():
        value = ours(activations(0, 5, 3))
        assert value == 0
        assert not value.is_complex()


LAYERS = {
    "channels": (lambda: SpatialDropout(0.25), (2, 3)),
    "time": (lambda: VariationalDropout(0.25), (1,)),
    "rows": (lambda: StochasticDepth(0.25), (1, 2, 3)),
}


@pytest.mark.parametrize("has_stream", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_what_is_dropped_are_complex_numbers_and_not_their_parts(kind, has_stream):
    make, shared = LAYERS[kind]
    layer = make()
    if has_stream:
        layer.stream = NoiseStream()
        layer.stream.start(7)
    torch.manual_seed(0)
    values = activations(64, 16, 4, 4, dtype=torch.cfloat).detach()
    factors = layer(values) / values
    assert factors.isclose(torch.tensor(0j)).logical_or(factors.isclose(torch.tensor(4 / 3 + 0j))).all()
    number = math.prod(size for dim, size in enumerate(values.shape) if dim not in shared)
    # Six standard deviations of the mean over what is decided by itself.
    assert abs(factors.real.mean() - 1) < 6 * math.sqrt(1 / 3 / number)
    for dim in shared:
        torch.testing.assert_close(factors, factors.narrow(dim, 0, 1).expand_as(factors))


def test_blocks_are_dropped_from_both_parts():
    values = activations(2, 3, 8, 8).detach()
    seeds = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.05
    dropped = drop_block(values, seeds, 3, 0.05)
    parts = [drop_block(part, seeds, 3, 0.05) for part in (values.real, values.imag)]
    torch.testing.assert_close(dropped, torch.complex(*parts), rtol=0, atol=0)
    kept = DropBlock(0.3, block_size=3)(torch.ones(500, 4, 8, 8, dtype=torch.cfloat))
    assert (kept == 0).float().mean() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("make", [lambda: SpatialDropout(0.25), lambda: DropBlock(0.25, block_size=3)])
def test_compiled_layers_draw_the_same(make):
    values = activations(4, 3, 8, 8, dtype=torch.cfloat).detach()
    outputs = []
    for compiles in (False, True):
        layer = make()
        layer.stream = NoiseStream()
        layer.stream.start(7)
        outputs.append((torch.compile(layer, backend="aot_eager", fullgraph=True) if compiles else layer)(values))
    torch.testing.assert_close(outputs[1], outputs[0])
    for inputs in (values, values.real):
        layer = torch.compile(make(), backend="aot_eager", fullgraph=True)
        assert layer(inputs).dtype == inputs.dtype


@pytest.mark.parametrize(
    "callback",
    [
        ActivityPenalty(l1=0.1, l2=0.1, temporal=0.1, include=("filters",)),
        DecorrelationPenalty(weight=0.1, include=("filters",)),
        InsertDropBlock(p=0.3, block_size=3, include=("filters",)),
        InsertDropout(p=0.3, kind="spatial", include=("filters",)),
        InsertStochasticDepth(p=0.5, include=("residual",)),
        InsertLayerDrop(p=0.5, include=("residual",)),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_callbacks_act_on_complex_activations(callback):
    plain, with_it = fit()[0], fit(callback)[0]
    assert not torch.equal(plain.filters.weight, with_it.filters.weight)
    assert with_it.filters.weight.isfinite().all()


def test_statistics_are_those_of_both_parts():
    class Watched(Spectral):
        """With one step, whose activations are known."""

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Watched()
    with torch.no_grad():
        module.filters.weight[0] = 0
        module.filters.bias[0] = 0
        outputs = torch.view_as_real(module.filters(torch.fft.fft(signals().tensors[0])))
    trainer = quiet_trainer(ActivationStats(include="filters", every_n_steps=1, window=1), log_every_n_steps=1)
    trainer.fit(module, DataLoader(signals(), batch_size=24))
    logged = {name.split("/")[-1]: value.item() for name, value in trainer.callback_metrics.items()}
    assert logged["mean"] == pytest.approx(outputs.mean().item(), rel=1e-4)
    assert logged["std"] == pytest.approx(outputs.std(unbiased=False).item(), rel=1e-5)
    assert logged["zeros"] == logged["dead"] == 0.25  # one channel of four


def test_what_cannot_be_measured_is_not_said_not_to_have_run():
    class Counts(nn.Module):
        def forward(self, inputs):
            return inputs.argmax(1)

    class Watched(Spectral):
        def __init__(self):
            super().__init__()
            self.counts = Counts()

        def training_step(self, batch, batch_idx):
            self.counts(batch[0])
            return super().training_step(batch, batch_idx)

    trainer = quiet_trainer(ActivationStats(include="counts", every_n_steps=1), log_every_n_steps=1)
    with pytest.warns(UserWarning, match="or none returned floating-point numbers, or which were compiled"):
        trainer.fit(Watched(), DataLoader(signals(), batch_size=8))
