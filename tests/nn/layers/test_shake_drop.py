"""Residual branches that are multiplied by one number forward and by another one backward."""

import math

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, vmap

from lightning_reg.functional.forward.branches import shake_drop
from lightning_reg.nn import ShakeDrop
from lightning_reg.settings import SettingError

P, ALPHA, BETA = 0.4, (-0.5, 1.0), (0.25, 0.75)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def by_hand(gates, drawn, bounds):
    """b + α - b α of the paper, sample by sample."""
    factors = []
    for gate, number in zip(gates.flatten().tolist(), drawn.flatten().tolist(), strict=True):
        b = 0 if gate < P else 1
        noise = bounds[0] + (bounds[1] - bounds[0]) * number
        factors.append(b + noise - b * noise)
    return torch.tensor(factors, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(64,), (64, 3), (64, 3, 2, 2)])
def test_forward_and_backward_are_the_papers(shape):
    branch = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(shape, dtype=torch.float64)
    one_each = (len(branch), *[1] * (len(shape) - 1))
    uniform = torch.rand(3, *one_each, dtype=torch.float64)
    out = shake_drop(branch, uniform, P, ALPHA, BETA)
    (gradient,) = torch.autograd.grad(out, branch, upstream)
    forth, back = (by_hand(uniform[0], uniform[row], bounds) for row, bounds in ((1, ALPHA), (2, BETA)))
    torch.testing.assert_close(out, branch * forth.view(one_each), rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, upstream * back.view(one_each), rtol=1e-14, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # of torch's forward mode itself
def test_gradients_of_any_order_and_way():
    uniform, branch = torch.rand(3, 4, 1, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    back = by_hand(uniform[0], uniform[2], BETA).view(4, 1)

    def loss(values, numbers):
        return shake_drop(values, numbers, P, ALPHA, BETA).sum()

    per_sample = vmap(grad(loss), in_dims=(0, 1))(branch, uniform)
    torch.testing.assert_close(per_sample, back.expand(4, 3))
    ones = torch.ones_like(branch)
    _, tangent = torch.func.jvp(lambda values: shake_drop(values, uniform, P, ALPHA, BETA), (branch,), (ones,))
    torch.testing.assert_close(tangent, back.expand(4, 3))
    with forward_ad.dual_level():
        out = shake_drop(forward_ad.make_dual(branch, ones), uniform, P, ALPHA, BETA)
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, back.expand(4, 3))
    # What is said to be the gradient is linear in what comes from above, and differentiable in it.
    above = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    branch.requires_grad_()
    out = shake_drop(branch, uniform, P, ALPHA, BETA)
    (gradient,) = torch.autograd.grad(out, branch, above, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), above)
    torch.testing.assert_close(second, 2 * above.detach() * back.square())


def test_evaluation_is_the_expectation_of_training():
    layer = ShakeDrop(P, alpha=ALPHA)
    out = layer(torch.ones(100_000))
    expected = (1 - P) + P * 0.25
    assert layer.eval()(torch.ones(2)).tolist() == pytest.approx([expected] * 2)
    squares = (1 - P) + P * (0.25**2 + 1.5**2 / 12)
    assert abs(out.mean().item() - expected) <= 4 * math.sqrt((squares - expected**2) / 100_000)
    assert abs((out == 1).float().mean().item() - (1 - P)) <= 4 * math.sqrt(P * (1 - P) / 100_000)


def test_what_is_drawn_is_drawn_for_each_sample_and_independent():
    inputs = torch.ones(20_000, 2, requires_grad=True)
    out = ShakeDrop(1.0)(inputs)
    (gradient,) = torch.autograd.grad(out.sum(), inputs)
    assert not out.std(1).any()
    assert out.detach().min() < -0.99
    assert gradient.min() >= 0
    both = torch.stack([out[:, 0].detach(), gradient[:, 0]])
    assert abs(torch.corrcoef(both)[0, 1].item()) <= 4 / math.sqrt(20_000)


def test_a_rate_of_zero_is_the_identity_in_both_modes():
    inputs = torch.randn(4, 3)
    assert ShakeDrop(0.0)(inputs) is inputs
    assert ShakeDrop(0.0).eval()(inputs) is inputs


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_is_kept(dtype):
    assert ShakeDrop(P)(torch.ones(8, 3, dtype=dtype)).dtype == dtype
    assert ShakeDrop(P).eval()(torch.ones(8, 3, dtype=dtype)).dtype == dtype


def test_compiles_without_a_graph_break_and_has_its_own_gradient_there():
    torch._dynamo.reset()
    compiled = torch.compile(ShakeDrop(1.0, alpha=(0.5, 0.5), beta=(0.25, 0.25)), backend="aot_eager", fullgraph=True)
    inputs = torch.ones(4, 3, requires_grad=True)
    out = compiled(inputs)
    out.sum().backward()
    assert out.unique().tolist() == [0.5]
    assert inputs.grad.unique().tolist() == [0.25]
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 1.5}, r"p must be in \[0, 1\], but is 1.5"),
        ({"alpha": (-2.0, 1.0)}, r"each of alpha must be in \[-1, 1\], but is -2.0"),
        ({"alpha": (1.0, 0.0)}, r"alpha must be the lowest number and then the highest, but is \(1.0, 0.0\)"),
        ({"beta": 0.5}, "beta must be the lowest and the highest number, but is 0.5"),
        ({"beta": (-0.5, 1.0)}, r"each of beta must be in \[0, 1\], but is -0.5"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        ShakeDrop(**settings)
