import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from lightning_reg.functional.reference import batch_norm
from lightning_reg.settings import SettingError

SHAPES = [(7, 3), (4, 3, 6), (2, 3, 4, 5)]
SMALL_SHAPES = [(4, 2), (3, 2, 2), (2, 2, 2, 2)]


def random_case(shape, affine):
    """Inputs of mean 2, so that leaving a mean out would show; running statistics that aren't the initial ones."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes):
        return torch.randn(sizes, dtype=torch.float64, generator=generator)

    channels = shape[1]
    inputs = (2 + 3 * draw(*shape)).requires_grad_()
    parameters = [draw(channels).requires_grad_(), draw(channels).requires_grad_()] if affine else [None, None]
    return inputs, draw(channels), 1 + draw(channels).square(), *parameters


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_is_torchs_forward_and_backward(shape, affine, training):
    inputs, mean, variance, weight, bias = random_case(shape, affine)
    their_mean, their_variance = mean.clone(), variance.clone()
    ours = batch_norm(inputs, mean, variance, weight, bias, training=training, momentum=0.3, eps=1e-3)
    theirs = F.batch_norm(inputs, their_mean, their_variance, weight, bias, training, 0.3, 1e-3)
    # Sums of at most 40 numbers of the order of 1 to 10 in float64 are right to 1e-13; a wrong term isn't so small.
    exact = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(ours, theirs, **exact)
    torch.testing.assert_close(mean, their_mean, **exact)
    torch.testing.assert_close(variance, their_variance, **exact)
    grad_outputs = torch.linspace(-1, 2, inputs.numel(), dtype=torch.float64).view(shape)
    wanted = [inputs, weight, bias] if affine else [inputs]
    gradients = [torch.autograd.grad(outputs, wanted, grad_outputs) for outputs in (ours, theirs)]
    for our_gradient, their_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(our_gradient, their_gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SMALL_SHAPES)
def test_gradients_are_right_twice(shape, affine, training):
    inputs, mean, variance, weight, bias = random_case(shape, affine)

    def normalize(inputs, *parameters):
        running = mean.clone(), variance.clone()  # the same ones in each of gradcheck's calls
        return batch_norm(inputs, *running, *parameters, training=training, eps=1e-3)

    arguments = (inputs, weight, bias) if affine else (inputs,)
    assert gradcheck(normalize, arguments)
    assert gradgradcheck(normalize, arguments)


def test_running_statistics_follow_over_batches_like_torchs_layer():
    layer = nn.BatchNorm2d(3, momentum=0.2, dtype=torch.float64)
    mean, variance = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for size in (4, 2, 5):
        inputs = torch.randn(size, 3, 2, 2, dtype=torch.float64, generator=generator)
        layer(inputs)
        batch_norm(inputs, mean, variance, training=True, momentum=0.2)
    torch.testing.assert_close(mean, layer.running_mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(variance, layer.running_var, rtol=0, atol=1e-12)


def test_training_needs_no_running_statistics():
    inputs, _, _, weight, bias = random_case((4, 3), affine=True)
    ours = batch_norm(inputs, None, None, weight, bias, training=True)
    theirs = F.batch_norm(inputs, None, None, weight, bias, training=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((3,), {}, r"inputs must have the shape \(N, C, \.\.\.\), but have \(3,\)"),
        ((1, 3), {}, r"more than one value per channel in training, but have the shape \(1, 3\)"),
        ((0, 3, 4), {}, r"more than one value per channel in training, but have the shape \(0, 3, 4\)"),
        ((4, 3), {"weight": torch.ones(4)}, r"weight must have the shape \(3,\), but has \(4,\)"),
        ((4, 3), {"bias": torch.ones(3, 1)}, r"bias must have the shape \(3,\), but has \(3, 1\)"),
        ((4, 2), {}, r"running_mean must have the shape \(2,\), but has \(3,\)"),
        ((4, 3), {"momentum": 1.5}, r"momentum must be in \[0, 1\], but is 1.5"),
        ((4, 3), {"eps": -1e-5}, r"eps must be in \[0, ∞\), but is -1e-05"),
    ],
)
def test_bad_inputs_are_refused(shape, settings, message):
    mean, variance = torch.zeros(3), torch.ones(3)
    with pytest.raises(SettingError, match=message):
        batch_norm(torch.ones(shape), mean, variance, training=True, **settings)
    assert not mean.any()


def test_evaluation_without_running_statistics_is_refused():
    with pytest.raises(SettingError, match="running_mean must be given in evaluation, but is None"):
        batch_norm(torch.ones(4, 3), None, None, training=False)


def test_evaluation_takes_a_single_value_per_channel():
    outputs = batch_norm(torch.full((1, 3), 5.0), torch.full((3,), 2.0), torch.full((3,), 9.0), training=False, eps=0)
    assert torch.equal(outputs, torch.ones(1, 3))
