import pytest
import torch

from lightning_reg.functional.penalties import add_l2_gradient_, l2_penalty


def random_weights(count=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, index + 1, generator=generator, dtype=torch.float64) for index in range(count)]


def test_value_is_the_textbooks():
    weights = random_weights()
    expected = 0.3 / 2 * sum((weight**2).sum() for weight in weights)
    torch.testing.assert_close(l2_penalty(weights, 0.3), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("strength", [0.3, torch.tensor(0.3, dtype=torch.float64)], ids=["float", "tensor"])
def test_gradient_is_autograds_of_the_textbook_formula(strength):
    weights = [weight.requires_grad_() for weight in random_weights()]
    expected = torch.autograd.grad(0.3 / 2 * sum((weight**2).sum() for weight in weights), weights)
    gradients = [torch.ones_like(weight) for weight in weights]
    add_l2_gradient_(gradients, weights, strength)
    for gradient, change in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, 1 + change, rtol=1e-14, atol=0)


def test_value_is_differentiable():
    weights = [weight.requires_grad_() for weight in random_weights()]
    assert torch.autograd.gradcheck(lambda *tensors: l2_penalty(tensors, 0.3), weights)
