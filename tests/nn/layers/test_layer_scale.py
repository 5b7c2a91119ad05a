"""A learned size of what a residual branch adds."""

import pytest
import torch

from lightning_reg.models import TransformerClassifier
from lightning_reg.nn import LayerScale, TransformerBlock
from lightning_reg.optim import weight_decay_groups
from lightning_reg.settings import SettingError


def test_value_and_gradient_are_those_of_a_diagonal_matrix_in_float64():
    layer = LayerScale(4, init_value=0.3).double()
    with torch.no_grad():
        layer.gamma.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
    inputs = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch.testing.assert_close(layer(inputs), inputs @ torch.diag(layer.gamma))
    expected = torch.autograd.grad((inputs @ torch.diag(layer.gamma)).square().sum(), (inputs, layer.gamma))
    torch.testing.assert_close(torch.autograd.grad(layer(inputs).square().sum(), (inputs, layer.gamma)), expected)


def block(layer_scale):
    torch.manual_seed(0)
    return TransformerBlock(8, 2, hidden_dim=16, layer_scale=layer_scale)


def test_a_block_scales_both_of_its_branches():
    tokens = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    plain, scaled = block(None), block(0.1)
    attended = tokens + 0.1 * plain.attention(plain.attention_norm(tokens))
    expected = attended + 0.1 * plain.feed_forward(plain.feed_forward_norm(attended))
    torch.testing.assert_close(scaled(tokens), expected)
    assert not any("layer_scale" in name for name, _ in plain.named_parameters())


def test_a_small_beginning_is_near_the_identity():
    tokens = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(block(1e-6)(tokens), tokens, rtol=1e-4, atol=1e-4)


def test_initialization_leaves_it_and_weight_decay_spares_it():
    model = TransformerClassifier(input_shape=(1, 8, 8), num_classes=3, patch_size=4, depth=2, layer_scale=0.2)
    scales = [module.gamma for module in model.modules() if isinstance(module, LayerScale)]
    assert len(scales) == 4
    assert all((gamma == 0.2).all() for gamma in scales)
    decayed = [group for group in weight_decay_groups(model, 0.1) if group["weight_decay"]]
    assert not any(parameter is gamma for group in decayed for parameter in group["params"] for gamma in scales)


def test_sixteen_bits_stay_sixteen():
    assert LayerScale(4)(torch.ones(1, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_bad_settings_are_refused_at_once(value):
    with pytest.raises(SettingError, match=r"init_value must be in \(0, ∞\)"):
        LayerScale(4, init_value=value)


def test_a_model_names_its_own_setting():
    with pytest.raises(SettingError, match=r"layer_scale must be in \(0, ∞\), but is 0"):
        TransformerClassifier(input_shape=(1, 8, 8), num_classes=3, layer_scale=0)
