import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from lightning_reg.functional.reference import rms_norm
from lightning_reg.settings import SettingError

SHAPES = [((7,), (7,)), ((4, 7), (7,)), ((3, 4, 7), (7,)), ((3, 4, 7), (4, 7)), ((2, 3, 4, 5), (3, 4, 5))]
SMALL_SHAPES = [((3, 4), (4,)), ((2, 2, 3), (2, 3))]


def random_case(shape, normalized_shape, affine):
    generator = torch.Generator().manual_seed(0)

    def draw(sizes):
        return torch.randn(sizes, dtype=torch.float64, generator=generator)

    parameters = [draw(normalized_shape).requires_grad_()] if affine else []
    return (2 + 3 * draw(shape)).requires_grad_(), *parameters


@pytest.mark.parametrize("eps", [1e-3, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("shape", "normalized_shape"), SHAPES)
def test_rms_norm_is_torchs_forward_and_backward(shape, normalized_shape, affine, eps):
    arguments = random_case(shape, normalized_shape, affine)
    inputs, *parameters = arguments
    ours = rms_norm(inputs, normalized_shape, *parameters, eps=eps)
    theirs = F.rms_norm(inputs, normalized_shape, *parameters, eps=eps)
    # Sums of at most 60 numbers of the order of 1 to 10 in float64 are right to 1e-13; a wrong term isn't so small.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    grad_outputs = torch.linspace(-1, 2, inputs.numel(), dtype=torch.float64).view(shape)
    gradients = [torch.autograd.grad(outputs, arguments, grad_outputs) for outputs in (ours, theirs)]
    for our_gradient, their_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(our_gradient, their_gradient, rtol=0, atol=1e-10)


def test_default_eps_is_that_of_the_dtype():
    """Inputs as small as its root tell."""
    inputs = torch.full((1, 4), 1e-8, dtype=torch.float64)
    torch.testing.assert_close(rms_norm(inputs, (4,)), F.rms_norm(inputs, (4,)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("shape", "normalized_shape"), SMALL_SHAPES)
def test_gradients_are_right_twice(shape, normalized_shape, affine):
    arguments = random_case(shape, normalized_shape, affine)

    def normalize(inputs, *parameters):
        return rms_norm(inputs, normalized_shape, *parameters, eps=1e-3)

    assert gradcheck(normalize, arguments)
    assert gradgradcheck(normalize, arguments)


@pytest.mark.parametrize(
    ("normalized_shape", "settings", "message"),
    [
        ((3,), {}, r"inputs must have a shape that ends with \(3,\), but have \(2, 4\)"),
        ((4,), {"weight": torch.ones(2, 4)}, r"weight must have the shape \(4,\), but has \(2, 4\)"),
        ((4,), {"eps": -1.0}, r"eps must be in \[0, ∞\), but is -1.0"),
    ],
)
def test_bad_inputs_are_refused(normalized_shape, settings, message):
    with pytest.raises(SettingError, match=message):
        rms_norm(torch.ones(2, 4), normalized_shape, **settings)
